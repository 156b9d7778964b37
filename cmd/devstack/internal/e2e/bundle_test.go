package e2e

import (
	"testing"

	"github.com/nodpt/executor/cmd/devstack/internal/harness"
)

// bundle is a harness.Bundle on the Temporal server that all tests share.
type bundle struct{ *harness.Bundle }

func newBundle(t *testing.T) *bundle {
	t.Helper()
	return newBundleWith(t, harness.Options{})
}

// newBundleWith is newBundle with other options. Temporal is the shared server;
// without a namespace the bundle gets one that nobody uses yet.
func newBundleWith(t *testing.T, opts harness.Options) *bundle {
	t.Helper()
	opts.Temporal = shared.temporal.Address()
	if opts.Namespace == "" {
		select {
		case opts.Namespace = <-shared.free:
		default:
			t.Fatal("more tests than namespaces: raise the constant")
		}
	}
	return &bundle{harness.New(t, harness.Suite{Binary: shared.binary, Ports: shared.ports}, opts)}
}

func newBundleIn(t *testing.T, namespace string) *bundle {
	t.Helper()
	return newBundleWith(t, harness.Options{Namespace: namespace})
}

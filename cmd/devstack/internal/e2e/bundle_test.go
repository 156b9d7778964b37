package e2e

import (
	"testing"

	"github.com/nodpt/executor/cmd/devstack/internal/harness"
)

// bundle is a harness.Bundle on the Temporal server that all tests share.
type bundle struct{ *harness.Bundle }

func newBundle(t *testing.T) *bundle {
	t.Helper()
	select {
	case namespace := <-shared.free:
		return newBundleIn(t, namespace)
	default:
		t.Fatal("more tests than namespaces: raise the constant")
		return nil
	}
}

func newBundleIn(t *testing.T, namespace string) *bundle {
	t.Helper()
	return &bundle{harness.New(t,
		harness.Suite{Binary: shared.binary, Ports: shared.ports},
		harness.Options{Temporal: shared.temporal.Address(), Namespace: namespace},
	)}
}

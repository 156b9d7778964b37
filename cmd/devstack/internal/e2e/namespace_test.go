package e2e

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/nodpt/executor/cmd/devstack/internal/harness"
)

// newNamespace registers a namespace without search attributes, as a stranger's
// Temporal has it.
func newNamespace(t *testing.T) string {
	t.Helper()
	c, err := client.NewNamespaceClient(client.Options{HostPort: shared.temporal.Address(), Logger: harness.Silent{}})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	name := "bare-" + uuid.NewString()
	require.NoError(t, c.Register(t.Context(), &workflowservice.RegisterNamespaceRequest{
		Namespace: name, WorkflowExecutionRetentionPeriod: durationpb.New(24 * time.Hour),
	}))
	return name
}

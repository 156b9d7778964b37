package job_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/job"
)

func TestOnlyACompletedJobIsNotRunAgain(t *testing.T) {
	t.Parallel()
	for status, want := range map[job.Status]bool{
		job.Completed: false, job.Failed: true, job.Canceled: true, job.Rejected: true, "": false,
	} {
		require.Equal(t, want, status.Retryable(), "%q", status)
	}
}

func TestKeyTellsRolesApart(t *testing.T) {
	t.Parallel()
	a := job.Row{Role: job.Agent, JobID: "j1", Outcome: job.Outcome{Status: job.Failed}}
	b := job.Row{Role: job.Manager, JobID: "j1"}
	require.Equal(t, job.Key{Role: job.Agent, JobID: "j1"}, a.Key())
	require.NotEqual(t, a.Key(), b.Key())
}

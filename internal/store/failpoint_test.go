//go:build failpoints

package store

import (
	"os"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/internal/failpoint"
	"github.com/nodpt/executor/internal/failpointtest"
	"github.com/nodpt/executor/internal/job"
)

// Variables of the processes that the tests start: the database, and how many
// rows to persist, one after the other.
const (
	childURL  = "STORE_TEST_URL"
	childRows = "STORE_TEST_ROWS"
)

// TestFailpointChild is what such a process runs. It tells of every row on
// stderr.
func TestFailpointChild(t *testing.T) {
	t.Parallel()
	url := os.Getenv(childURL)
	if url == "" {
		require.NoError(t, failpoint.Check())
		require.False(t, failpoint.Armed(failpoint.PersistTx), "the tests themselves are not armed")
		return
	}
	rows, err := strconv.Atoi(os.Getenv(childRows))
	require.NoError(t, err)
	s := open(t, url)
	for i := range rows {
		_, err := s.Persist(t.Context(), completed("job "+strconv.Itoa(i), "run:1", noon()))
		if err != nil {
			_, _ = os.Stderr.WriteString("failed\n")
			continue
		}
		_, _ = os.Stderr.WriteString("stored\n")
	}
}

func persistInChild(t *testing.T, plan, url string, rows int) (stderr string, state *os.ProcessState) {
	t.Helper()
	return failpointtest.Run(t, "TestFailpointChild", plan, childURL+"="+url, childRows+"="+strconv.Itoa(rows))
}

// TestFailpointsBeforeTheCommit runs on every dialect that is there: a process
// killed with a row written and not committed leaves no row, and neither does an
// error there.
func TestFailpointsBeforeTheCommit(t *testing.T) {
	t.Parallel()
	all := map[string]databases{sqliteName: sqliteFiles{}}
	for name, server := range chosenServers(t) {
		all[name] = server
	}
	for name, dbs := range all {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			t.Run("kill", func(t *testing.T) {
				t.Parallel()
				url := dbs.fresh(t)
				stderr, state := persistInChild(t, "persist_tx:2:kill", url, 3)
				require.Equal(t, "stored\nfailpoint persist_tx pass 2: kill\n", stderr)
				require.True(t, failpointtest.Killed(state), "%v", state)
				requireStored(t, url, true, false, false)
			})
			t.Run("error", func(t *testing.T) {
				t.Parallel()
				url := dbs.fresh(t)
				stderr, state := persistInChild(t, "persist_tx:2:error", url, 3)
				require.Equal(t, "stored\nfailpoint persist_tx pass 2: error\nfailed\nstored\n", stderr)
				require.True(t, state.Success(), "%v", state)
				requireStored(t, url, true, false, true)
			})
		})
	}
}

func requireStored(t *testing.T, url string, want ...bool) {
	t.Helper()
	s := open(t, url)
	for i, there := range want {
		key := job.Key{Role: job.Agent, JobID: "job " + strconv.Itoa(i)}
		_, found, err := s.Row(t.Context(), key)
		require.NoError(t, err)
		require.Equal(t, there, found, "row %d", i)
	}
}

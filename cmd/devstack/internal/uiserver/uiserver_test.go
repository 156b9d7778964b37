package uiserver

import (
	"context"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/cmd/devstack/internal/proc"
	"github.com/nodpt/executor/cmd/devstack/internal/temporald"
)

func TestUIShowsTheServer(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	ports := new(proc.Ports)
	port, err := ports.Free(ctx)
	require.NoError(t, err)
	temporal, err := temporald.Start(ctx, temporald.Config{Port: port}, ports)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, temporal.Stop()) })

	port, err = ports.Free(ctx)
	require.NoError(t, err)
	ui, err := Start(ctx, port, temporal.Address(), temporald.DefaultNamespace)
	require.NoError(t, err)

	require.Contains(t, get(t, ui.URL()), "<html")
	require.Contains(t, get(t, ui.URL()+"/api/v1/namespaces"), `"JobRole"`)

	_, err = Start(ctx, port, temporal.Address(), temporald.DefaultNamespace)
	require.ErrorContains(t, err, "is busy")

	ui.Stop()
	require.True(t, proc.IsFree(t.Context(), port))
}

func get(t *testing.T, url string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer func() { require.NoError(t, resp.Body.Close()) }()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode, string(body))
	return string(body)
}

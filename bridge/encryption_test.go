package bridge

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/converter"

	"github.com/nodpt/executor/internal/codec"
	"github.com/nodpt/executor/internal/job"
	"github.com/nodpt/executor/workflows"
)

// encryptedWith is the data converter of a process that has these keys.
func encryptedWith(t *testing.T, ids ...string) converter.DataConverter {
	t.Helper()
	entries := make([]string, len(ids))
	for i, id := range ids {
		entries[i] = id + ":" + base64.StdEncoding.EncodeToString([]byte(strings.Repeat(id, 32)))
	}
	var keys []codec.Key
	if len(entries) > 0 {
		var err error
		keys, err = codec.ParseKeys(strings.Join(entries, ","))
		require.NoError(t, err)
	}
	c, err := codec.New(keys, nil)
	require.NoError(t, err)
	return c.DataConverter()
}

// TestRunsUnderEncryption: runs are told by their memo, which is encrypted like
// everything else, or was not when they were started. What is encrypted with a
// key that is not at hand is trouble: taken for a run without memo, it would be
// taken for a person's.
func TestRunsUnderEncryption(t *testing.T) {
	t.Parallel()
	plain, a := converter.GetDefaultDataConverter(), encryptedWith(t, "a")
	for name, tt := range map[string]struct {
		written, read converter.DataConverter
		readable      bool
	}{
		"encrypted":                     {a, a, true},
		"with the key before":           {a, encryptedWith(t, "b", "a"), true},
		"before it was switched on":     {plain, a, true},
		"the key is missing":            {a, encryptedWith(t, "b"), false},
		"switched off with runs around": {a, encryptedWith(t), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			killed := execution(t, "run-1", enumspb.WORKFLOW_EXECUTION_STATUS_TERMINATED)
			for key, value := range map[string]string{workflows.MemoEntryID: "5-0", workflows.MemoStream: "jobs:agent"} {
				p, err := tt.written.ToPayload(value)
				require.NoError(t, err)
				killed.Memo.Fields[key] = p
			}
			input, err := tt.written.ToPayloads(request().Input)
			require.NoError(t, err)
			_, c := connect(t, &frontend{
				describe: func() (*workflowservice.DescribeWorkflowExecutionResponse, error) {
					return &workflowservice.DescribeWorkflowExecutionResponse{WorkflowExecutionInfo: killed}, nil
				},
				lists:   []*workflowservice.ListWorkflowExecutionsResponse{{Executions: []*workflowpb.WorkflowExecutionInfo{killed}}},
				history: started(input),
			})
			service := Connect(c, TemporalConfig{Namespace: "ns", Converter: tt.read}, quiet())

			run, err := service.Describe(t.Context(), "job:agent:j1")
			in, inputErr := service.Input(t.Context(), Run{WorkflowID: "w", RunID: "r"})
			listed, listErr := service.Open(t.Context())
			require.NoError(t, listErr, "one run must not hide the others")
			require.Len(t, listed, 1)
			if tt.readable {
				require.NoError(t, err)
				require.NoError(t, inputErr)
				require.Equal(t, job.EntryEffect("jobs:agent", "5-0"), Run{Stream: run.Stream, EntryID: run.EntryID}.effect())
				require.Equal(t, run, listed[0])
				require.Equal(t, request().Input, in)
				return
			}
			for _, err := range []error{err, inputErr} {
				var locked *codec.Error
				require.ErrorAs(t, err, &locked)
				require.Equal(t, "a", locked.KeyID)
				require.False(t, unknowable(err), "it can be read when the key is there")
				require.NotContains(t, err.Error(), "SECRET")
			}
			require.Equal(t, "run-1", listed[0].RunID)
		})
	}
}

func started(input *commonpb.Payloads) []*historypb.HistoryEvent {
	return []*historypb.HistoryEvent{{
		EventId: 1, EventType: enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED,
		Attributes: &historypb.HistoryEvent_WorkflowExecutionStartedEventAttributes{
			WorkflowExecutionStartedEventAttributes: &historypb.WorkflowExecutionStartedEventAttributes{Input: input},
		},
	}}
}

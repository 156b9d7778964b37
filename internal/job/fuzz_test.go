package job_test

import (
	"testing"

	"github.com/nodpt/executor/internal/job"
)

func FuzzDecodeEntry(f *testing.F) {
	f.Add(byte(0), "1-0", "jobId", "j1", "task", "do it", "payload", `{"k":1}`)
	f.Add(byte(1), "1-0", "JobId", "日本語", "payload", "hello", "priority", "3")
	f.Add(byte(2), "", "data", `{"jobId":12,"task":"t","payload":{"a":[1,2]}}`, "source", "list", "", "")
	f.Add(byte(2), "1-0", "job", `{"jobId":"\ud83d\ude80","task":"\\ud83d"}`, "", "", "", "")
	f.Add(byte(3), "1-0", "message", ` {"Message":"hi","userId":null}`, "source", "list", "", "")
	f.Add(byte(3), "1-0", "data", `{"UserId":"u","ConnectionId":"c","Message":"m","NodeLevel":"Agent"}`, "source", "list", "x", "y")
	f.Add(byte(3), "1-0", "chatId", "7", "model", "m", "nodeLevel", "MANAGER")
	f.Add(byte(0), "1-0", "original_id", "1-0", "truncated", "1", "task", "x")
	f.Fuzz(func(t *testing.T, role byte, id, n1, v1, n2, v2, n3, v3 string) {
		roles := job.Roles()
		requireDecoded(t, roles[int(role)%len(roles)], job.Entry{ID: id, Fields: []job.Field{
			{Name: n1, Value: v1},
			{Name: n2, Value: v2},
			{Name: n3, Value: v3},
		}})
	})
}

func FuzzWorkflowID(f *testing.F) {
	f.Add(byte(0), "a", byte(1), "a")
	f.Add(byte(2), "日本語", byte(2), "日本")
	f.Add(byte(3), "a\n", byte(3), "a")
	f.Add(byte(3), "h:2cf24dba5fb0a30e26e83b2ac5b9e29e", byte(3), "hello\x00")
	f.Fuzz(func(t *testing.T, roleA byte, idA string, roleB byte, idB string) {
		roles := job.Roles()
		keyA := job.Key{Role: roles[int(roleA)%len(roles)], JobID: idA}
		keyB := job.Key{Role: roles[int(roleB)%len(roles)], JobID: idB}
		a, b := job.WorkflowID(keyA.Role, keyA.JobID), job.WorkflowID(keyB.Role, keyB.JobID)
		requireWorkflowID(t, a)
		requireWorkflowID(t, b)
		if (keyA == keyB) != (a == b) {
			t.Fatalf("%q and %q have the ids %s and %s", keyA, keyB, a, b)
		}
	})
}

//go:build chaos

package chaos

// processFaults are those of our own processes: killed, stopped or frozen at
// each step of a job.
func processFaults() []fault {
	return []fault{
		{
			id: "F01", name: "bridge killed after it read entries, before it started anything",
			run: func(w *world) {
				s := w.system()
				_ = s
				w.processes[0].kill()
				b := w.bridge(failing("read:3:kill"))
				w.load(8)
				b.died()
				b.again()
				w.heal()
			},
		},
		{
			id: "F11", name: "kill -9 of the worker in the middle of LLM calls",
			run: func(w *world) {
				s := w.system()
				w.LLM.Script(map[string]any{"hang": true})
				jobs := w.load(4)
				w.calling(4)
				s.roles.kill()
				hit(jobs...)
				w.LLM.Script(map[string]any{"hang": false})
				s.roles.again()
				w.heal()
			},
		},
		{
			id: "F14", name: "worker killed after publishing, before it reports",
			run: func(w *world) {
				s := w.system()
				s.workflows.kill()
				x := w.worker("workflows", failing("published:3:kill"))
				w.load(8)
				x.died()
				x.again()
				w.heal()
			},
		},
	}
}

package worker

import "github.com/nodpt/executor/internal/job"

// Pollers and slots that are not settings. A role queue hands out at most a few
// tasks a second per slot, so two pollers keep its slots filled; the workflows
// queue carries three short tasks per job.
const (
	rolePollers     = 2
	workflowPollers = 4
	workflowSlots   = 200
	finalPollers    = 2
	finalSlots      = 100
)

// limited tells whether anything but the jobs in flight limits a role's calls.
func (c Config) limited(role job.Role) bool { return c.Slots[role] > 0 || c.Total > 0 }

// slots is the number of calls of a role this process makes at once. 0 in the
// settings means unlimited.
func (c Config) slots(role job.Role) int {
	n := c.Slots[role]
	if n <= 0 {
		n = c.Unlimited
	}
	if c.Total > 0 {
		n = min(n, c.Total)
	}
	return max(n, 1)
}

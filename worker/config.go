package worker

import (
	"time"

	"github.com/nodpt/executor/internal/job"
)

// Config says which task queues this process serves and with how many slots.
type Config struct {
	// Queues are names from Queues(), at least one.
	Queues []string
	// Slots is the number of jobs of a role this process runs at once. 0 means
	// unlimited, which is Unlimited slots.
	Slots map[job.Role]int
	// Unlimited is what 0 slots stands for: more jobs than the bridge lets into
	// flight cannot be waiting (BRIDGE_MAX_IN_FLIGHT).
	Unlimited int
	// Total is the number of jobs that run at once over all roles and all
	// processes (MAX_TOTAL); 0 means no such limit. A role never gets more slots
	// than Total.
	Total int
	// DrainTimeout is how long running calls may finish after a stop was asked
	// for (DRAIN_TIMEOUT).
	DrainTimeout time.Duration
}

package bridge

import (
	"errors"
	"fmt"
	"time"
)

// Config holds the bridge's settings.
type Config struct {
	// MaxInFlight is how many entries of one stream may be pending before the
	// bridge stops reading new ones (BRIDGE_MAX_IN_FLIGHT, default 1000). Entries
	// stay pending until their job has ended, so this is the number of jobs in
	// flight over all bridges.
	MaxInFlight int
	// ClaimMinIdle is how long an entry must have been idle before XAUTOCLAIM
	// takes it from another consumer (CLAIM_MIN_IDLE, default 60s). Consumers that
	// died are noticed within seconds by their alive key; this is the fallback.
	// Entries of running jobs are refreshed at least three times in that period.
	ClaimMinIdle time.Duration
	// ChatList is the legacy Redis list of chat jobs (CHAT_LIST); empty is off.
	ChatList string
	// Updates is the stream outcomes are published on, signalr:updates.
	Updates string
}

// validate reports every setting the bridge cannot work with.
func (c Config) validate() error {
	var errs []error
	if c.MaxInFlight < 1 {
		errs = append(errs, fmt.Errorf("BRIDGE_MAX_IN_FLIGHT must be at least 1, is %d", c.MaxInFlight))
	}
	if c.ClaimMinIdle < time.Second {
		errs = append(errs, fmt.Errorf("CLAIM_MIN_IDLE must be at least 1s, is %s", c.ClaimMinIdle))
	}
	if c.Updates == "" {
		errs = append(errs, errors.New("the bridge needs the name of the updates stream"))
	}
	return errors.Join(errs...)
}

// timing is how often the bridge does what it does. The values are not settings:
// they follow from one another and from the promise that a fault that healed is
// forgotten within 15 s. Tests shorten them.
type timing struct {
	block       time.Duration // one blocking read; a stop is noticed after it
	beat        time.Duration // the alive key lives 10 s
	sweep       time.Duration // look for entries of dead consumers
	survey      time.Duration // reconciler
	suspectIdle time.Duration // a pending entry without open run is suspect after it; below survey, so that one missed refresh is enough
	lease       time.Duration // reconciler's lease; beats renew it
	closing     time.Duration // retry of an entry whose old run is closing
	full        time.Duration // pause at MaxInFlight
	countFor    time.Duration // age of the pending count
	backoffMin  time.Duration
	backoffMax  time.Duration
	wrongType   time.Duration // look again at a key that is no stream
	start       time.Duration // one call of the workflow service
	call        time.Duration // one call of Redis or the store
	entry       time.Duration // all calls for one entry
	chatPoll    time.Duration
	audit       time.Duration // looking for lost entries of one stream, in each survey
	dropEvery   time.Duration // removal of old consumers
	dropIdle    time.Duration // age of such consumers
	killedSince time.Duration // how far back a new bridge looks for killed runs
	lookups     int           // looks at runs per second
	parallel    int           // starts at once per stream
}

func defaultTiming(cfg Config) timing {
	survey := max(time.Second/2, min(15*time.Second, cfg.ClaimMinIdle/3))
	return timing{
		block:       time.Second,
		beat:        3 * time.Second,
		sweep:       5 * time.Second,
		survey:      survey,
		suspectIdle: 12 * time.Second,
		lease:       10 * time.Second,
		closing:     time.Second,
		full:        100 * time.Millisecond,
		countFor:    200 * time.Millisecond,
		backoffMin:  100 * time.Millisecond,
		backoffMax:  5 * time.Second,
		wrongType:   5 * time.Second,
		start:       5 * time.Second,
		call:        10 * time.Second,
		entry:       20 * time.Second,
		chatPoll:    250 * time.Millisecond,
		audit:       min(time.Second, survey/4),
		dropEvery:   time.Hour,
		dropIdle:    24 * time.Hour,
		killedSince: 24 * time.Hour,
		lookups:     20,
		parallel:    16,
	}
}

const (
	batchSize   = 16  // entries per read: bounds memory, a value may be megabytes
	pageSize    = 500 // pending entries per listing; ids only
	rowsPerRead = 64  // keys per query, two of them for each entry
)

package bridge

import "time"

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
	ClaimMinIdle time.Duration
	// ChatList is the legacy Redis list of chat jobs (CHAT_LIST); empty is off.
	ChatList string
	// Updates is the stream outcomes are published on, signalr:updates.
	Updates string
}

//go:build chaos

package chaos

// temporalFaults are those of the workflow service and of the way to it.
func temporalFaults() []fault { return nil }

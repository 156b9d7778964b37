//go:build chaos

package chaos

// hostFaults are those of the machine the executor runs on, and of sheer numbers.
func hostFaults() []fault { return nil }

//go:build chaos

package chaos

// databaseFaults are those of the result store.
func databaseFaults() []fault { return nil }

//go:build chaos

package chaos

// redisFaults are those of Redis and of the way to it.
func redisFaults() []fault { return nil }

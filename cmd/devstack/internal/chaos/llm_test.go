//go:build chaos

package chaos

// llmFaults are those of the LLM and of the way to it.
func llmFaults() []fault { return nil }

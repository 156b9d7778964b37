// Package e2e holds the end-to-end tests: they run the built executor as a
// child process against a real Temporal server and a real Redis, and look at it
// only from outside, as its users do: streams, rows, runs, exit codes, logs.
// They exist because the promises of this program are about what is true
// between processes, which no test inside one of them can see.
package e2e

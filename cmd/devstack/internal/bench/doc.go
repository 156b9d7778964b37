// Package bench measures what the executor adds to what its engine costs. It
// exists because such figures mean something only as ratios within one run: on
// the same machine, at the same time and with the same parts, all of them real
// processes, taken in turn and in a new order each round.
package bench

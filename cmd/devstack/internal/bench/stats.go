package bench

import (
	"cmp"
	"math"
	"slices"
)

// quantile is the q-quantile of values that are sorted, 0 of none.
func quantile[T cmp.Ordered](sorted []T, q float64) T {
	if len(sorted) == 0 {
		var none T
		return none
	}
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}

// median is the middle of some values, or between the two in the middle.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	switch {
	case n == 0:
		return math.NaN()
	case n%2 == 1:
		return sorted[n/2]
	default:
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
}

// Estimate is the median of the same measurement in every round, with an interval
// that holds the true median with a probability of 90 % at least. It assumes
// nothing about the distribution: it lies between two of the values, counted from
// both ends, such that a fair coin rarely shows that few heads. With fewer than
// five values there is no such pair, and the interval is that of all of them.
type Estimate struct {
	Median float64   `json:"median"`
	Low    float64   `json:"low"`
	High   float64   `json:"high"`
	Values []float64 `json:"values"` // in the order of the rounds
}

// Estimated is the estimate from the values of all rounds.
func Estimated(values []float64) Estimate {
	e := Estimate{Median: median(values), Low: math.NaN(), High: math.NaN(), Values: values}
	if len(values) == 0 {
		return e
	}
	sorted := slices.Sorted(slices.Values(values))
	k := cut(len(sorted))
	e.Low, e.High = sorted[k], sorted[len(sorted)-1-k]
	return e
}

// cut is how many of n values may be left out at each end.
func cut(n int) int {
	tail, probability := 0.0, math.Pow(0.5, float64(n))
	for k := range n / 2 {
		tail += probability // of k heads or fewer in n throws
		if tail > 0.05 {
			return max(0, k-1)
		}
		probability *= float64(n-k) / float64(k+1)
	}
	return max(0, n/2-1)
}

// Ratios divides two series round by round.
func Ratios(over, under []float64) []float64 {
	out := make([]float64, min(len(over), len(under)))
	for i := range out {
		out[i] = over[i] / under[i]
	}
	return out
}

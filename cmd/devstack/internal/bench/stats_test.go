package bench

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestQuantile(t *testing.T) {
	t.Parallel()
	ten := []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
	for _, test := range []struct {
		name   string
		sorted []int
		q      float64
		want   int
	}{
		{"none", nil, 0.5, 0},
		{"one", []int{7}, 0.99, 7},
		{"lowest", ten, 0, 1},
		{"median of an even number: the lower one", ten, 0.5, 5},
		{"median of an odd number", []int{1, 2, 3}, 0.5, 2},
		{"95 of a hundred", ten, 0.95, 10},
		{"exactly at a value", ten, 0.9, 9},
		{"highest", ten, 1, 10},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, test.want, quantile(test.sorted, test.q))
		})
	}
}

func TestCut(t *testing.T) {
	t.Parallel()
	// Of 9: one head at most in nine throws comes with a probability of 10/512, two
	// at most with 46/512, and both ends together may take 10 %.
	for n, want := range map[int]int{0: 0, 1: 0, 2: 0, 3: 0, 4: 0, 5: 0, 6: 0, 7: 0, 8: 1, 9: 1, 10: 1, 11: 2, 12: 2, 13: 3, 20: 5} {
		require.Equal(t, want, cut(n), "of %d", n)
	}
	for n := 5; n <= 40; n++ {
		covered := 1.0
		for k := range cut(n) + 1 {
			covered -= 2 * binomial(n, k) * math.Pow(0.5, float64(n))
		}
		require.GreaterOrEqual(t, covered, 0.9, "interval of %d", n)
	}
}

func binomial(n, k int) float64 {
	out := 1.0
	for i := range k {
		out *= float64(n-i) / float64(i+1)
	}
	return out
}

func TestEstimated(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name              string
		values            []float64
		median, low, high float64
	}{
		{"one", []float64{3}, 3, 3, 3},
		{"two", []float64{4, 2}, 3, 2, 4},
		{"fewer than five: all of them", []float64{4, 1, 3, 2}, 2.5, 1, 4},
		{"five: all of them", []float64{5, 1, 4, 2, 3}, 3, 1, 5},
		{"nine: without one at each end", []float64{9, 1, 8, 2, 7, 3, 6, 4, 5}, 5, 2, 8},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			before := append([]float64(nil), test.values...)
			got := Estimated(test.values)
			require.Equal(t, Estimate{Median: test.median, Low: test.low, High: test.high, Values: before}, got)
		})
	}

	none := Estimated(nil)
	require.True(t, math.IsNaN(none.Median))
	require.True(t, math.IsNaN(none.Low))
	require.True(t, math.IsNaN(none.High))
}

func TestRatios(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name              string
		over, under, want []float64
	}{
		{"none", nil, nil, []float64{}},
		{"round by round", []float64{1, 6, 8}, []float64{2, 3, 8}, []float64{0.5, 2, 1}},
		{"a round that only one has", []float64{1, 6}, []float64{2}, []float64{0.5}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, test.want, Ratios(test.over, test.under))
		})
	}
}

// TestFigures checks that ratios are of the same round, not of two medians.
func TestFigures(t *testing.T) {
	t.Parallel()
	cell := func(name string, concurrency, round int, rate, p50 float64) Cell {
		return Cell{Contestant: name, Concurrency: concurrency, Round: round, Rate: rate, P50: p50, RoundTrips: 5}
	}
	r := Report{
		Cells: []Cell{
			// The machine is twice as fast in the second round, and again in the third.
			cell(Executor, 32, 1, 90, 0), cell("engine", 32, 1, 100, 0), cell("naive", 32, 1, 45, 0),
			cell("engine", 32, 2, 200, 0), cell("naive", 32, 2, 90, 0), cell(Executor, 32, 2, 190, 0),
			cell("naive", 32, 3, 200, 0), cell(Executor, 32, 3, 400, 0), cell("engine", 32, 3, 400, 0),
			cell(Executor, 1, 1, 0, 12), cell("engine", 1, 1, 0, 10),
		},
		Runs:        map[string]Runs{Executor: {Events: 14}},
		Utilisation: []Utilisation{{Name: PlainSlots, Share: 0.98, Rate: 34.4}, {Name: TotalSlots, Share: 0.99}},
		OldRate:     1,
	}
	require.Equal(t, Figures{
		ExecutorVsEngine: 0.95, ExecutorVsNaive: 2, P50VsEngine: 1.2,
		Slots: 0.98, SlotsTotal: 0.99, VsOld: 34.4, Events: 14, RoundTrips: 5,
	}, r.Figures())
}

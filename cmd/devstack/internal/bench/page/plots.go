package page

import (
	"bytes"
	"fmt"
	"image/color"
	"math"
	"slices"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"

	"github.com/nodpt/executor/cmd/devstack/internal/bench"
	"github.com/nodpt/executor/cmd/devstack/internal/bench/contestant"
)

// File names of the pictures.
const (
	rateImage    = "bench-rate.svg"
	latencyImage = "bench-latency.svg"
	cpuImage     = "bench-cpu.svg"
	slotsImage   = "bench-slots.svg"
)

// Sizes of a picture, in points: three quarters of a browser's pixel.
const (
	imageWidth  vg.Length = 570
	lineHeight  vg.Length = 310
	barHeight   vg.Length = 280
	rowHeight   vg.Length = 34
	legendWidth vg.Length = 100
	margin      vg.Length = 10
)

// Images are the pictures in SVG by file name, as far as there is something to
// show. The same results give the same bytes.
func Images(r bench.Report) (map[string][]byte, error) {
	out := map[string][]byte{}
	draw := func(name string, picture func(bench.Report) ([]byte, error)) error {
		svg, err := picture(r)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		out[name] = svg
		return nil
	}
	if len(r.Cells) > 0 {
		if err := draw(rateImage, func(r bench.Report) ([]byte, error) { return lines(r, rate, "jobs a second") }); err != nil {
			return nil, err
		}
		if err := draw(latencyImage, func(r bench.Report) ([]byte, error) { return lines(r, p50, "median time of a job in ms") }); err != nil {
			return nil, err
		}
		if err := draw(cpuImage, cpuBars); err != nil {
			return nil, err
		}
	}
	if len(r.Utilisation) > 0 {
		if err := draw(slotsImage, slotBars); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// look is how a design is drawn. Colours differ for the colour-blind too (Okabe and
// Ito), and dashes where there are none.
type look struct {
	color  color.Color
	width  vg.Length
	dashes []vg.Length
	shape  draw.GlyphDrawer
}

func lookOf(design string) look {
	switch design {
	case bench.Executor:
		return look{rgb(0x00, 0x72, 0xb2), 2.5, nil, draw.CircleGlyph{}}
	case contestant.Engine:
		return look{rgb(0x22, 0x22, 0x22), 1.5, []vg.Length{6, 3}, draw.SquareGlyph{}}
	case contestant.Eager:
		return look{rgb(0x22, 0x22, 0x22), 1.5, []vg.Length{1, 2}, draw.PlusGlyph{}}
	case contestant.Floor:
		return look{rgb(0x88, 0x88, 0x88), 1.5, []vg.Length{1, 3}, draw.RingGlyph{}}
	case contestant.Naive:
		return look{rgb(0xd5, 0x5e, 0x00), 1.5, nil, draw.TriangleGlyph{}}
	case contestant.Queue:
		return look{rgb(0x00, 0x9e, 0x73), 1.5, []vg.Length{2, 2}, draw.PyramidGlyph{}}
	default:
		return look{rgb(0xcc, 0x79, 0xa7), 1.5, []vg.Length{6, 2, 2, 2}, draw.CrossGlyph{}}
	}
}

func partColor(part string) color.Color {
	switch part {
	case own:
		return rgb(0x00, 0x72, 0xb2)
	case bench.Temporal:
		return rgb(0xe6, 0x9f, 0x00)
	case bench.Database:
		return rgb(0x99, 0x99, 0x99)
	case bench.Redis:
		return rgb(0xd5, 0x5e, 0x00)
	default:
		return rgb(0x56, 0xb4, 0xe9)
	}
}

func rgb(r, g, b uint8) color.Color { return color.RGBA{R: r, G: g, B: b, A: 0xff} }

// lines draws a measure over the concurrencies, a line for each design. Both axes
// are logarithmic: the same ratio is the same distance everywhere.
func lines(r bench.Report, of func(bench.Cell) float64, title string) ([]byte, error) {
	p, legend := newPlot(title)
	p.X.Label.Text = "jobs outstanding"
	low, high := math.Inf(1), math.Inf(-1)
	for _, name := range designs(r) {
		points := medians(r, name, of)
		if len(points.XYs) == 0 {
			continue
		}
		for i, point := range points.XYs {
			low, high = min(low, point.Y-points.YErrors[i].Low), max(high, point.Y+points.YErrors[i].High)
		}
		if err := points.add(p, legend, name); err != nil {
			return nil, err
		}
	}
	if low > high {
		low, high = 1, 10 // nothing could be measured
	}
	all := concurrencies(r)
	logarithmic(&p.X, float64(slices.Min(all))/1.2, float64(slices.Max(all))*1.2, powersOfTwo(slices.Max(all)))
	logarithmic(&p.Y, low/1.2, high*1.2, steps(low/1.2, high*1.2))
	return render(p, legend, lineHeight)
}

func logarithmic(a *plot.Axis, low, high float64, ticks plot.ConstantTicks) {
	a.Scale, a.Min, a.Max, a.Tick.Marker = plot.LogScale{}, low, high, ticks
}

func powersOfTwo(high int) plot.ConstantTicks {
	var ticks plot.ConstantTicks
	for n := 1; n <= high; n *= 2 {
		ticks = append(ticks, plot.Tick{Value: float64(n), Label: strconv.Itoa(n)})
	}
	return ticks
}

// steps are 1, 2 and 5 times the powers of ten.
func steps(low, high float64) plot.ConstantTicks {
	var ticks plot.ConstantTicks
	for power := math.Pow10(int(math.Floor(math.Log10(low)))); power <= high; power *= 10 {
		for _, step := range []float64{1, 2, 5} {
			if v := step * power; v >= low && v <= high {
				ticks = append(ticks, plot.Tick{Value: v, Label: strconv.FormatFloat(v, 'g', 6, 64)})
			}
		}
	}
	return ticks
}

// estimates are medians with their intervals.
type estimates struct {
	plotter.XYs
	plotter.YErrors
}

// medians are those that a logarithmic axis can show.
func medians(r bench.Report, name string, of func(bench.Cell) float64) estimates {
	var out estimates
	for _, c := range concurrencies(r) {
		e := over(r, name, c, of)
		if !known(e.Median) || !known(e.High) || !(e.Low > 0) {
			continue
		}
		out.XYs = append(out.XYs, plotter.XY{X: float64(c), Y: e.Median})
		out.YErrors = append(out.YErrors, struct{ Low, High float64 }{e.Median - e.Low, e.High - e.Median})
	}
	return out
}

func (e estimates) add(p *plot.Plot, legend *plot.Legend, name string) error {
	line, points, err := plotter.NewLinePoints(e.XYs)
	if err != nil {
		return err
	}
	bars, err := plotter.NewYErrorBars(e)
	if err != nil {
		return err
	}
	look := lookOf(name)
	line.Color, line.Width, line.Dashes = look.color, look.width, look.dashes
	points.Color, points.Shape, points.Radius = look.color, look.shape, 3
	bars.Color, bars.Width = look.color, 0.75
	p.Add(bars, line, points)
	legend.Add(name, line, points)
	return nil
}

// cpuBars draws the processor time of a job, a bar for each design.
func cpuBars(r bench.Report) ([]byte, error) {
	c := loaded(r)
	p, legend := newPlot(fmt.Sprintf("processor time of a job in ms, with %d jobs outstanding", c))
	var below *plotter.BarChart
	names := designs(r)
	for _, part := range cpuParts(r) {
		values := make(plotter.Values, len(names))
		for i, name := range names {
			// A difference of two counters can come out a little below nothing.
			if v := over(r, name, c, cpu(part)).Median; known(v) {
				values[i] = max(0, v)
			}
		}
		bars, err := plotter.NewBarChart(values, 44)
		if err != nil {
			return nil, err
		}
		bars.Color, bars.LineStyle.Width = partColor(part), 0
		if below != nil {
			bars.StackOn(below)
		}
		below = bars
		p.Add(bars)
		legend.Add(part, bars)
	}
	p.NominalX(names...)
	p.X.Min, p.X.Max, p.Y.Min, p.Y.Max = -0.6, float64(len(names))-0.4, 0, 1.05*p.Y.Max
	return render(p, legend, barHeight)
}

// slotBars draws how much of the slots was in use, a bar for each scenario.
func slotBars(r bench.Report) ([]byte, error) {
	p, legend := newPlot("slots in use, in %")
	const promised = 97
	n := len(r.Utilisation)
	values := make(plotter.Values, n)
	var labels plotter.XYLabels
	for i, u := range r.Utilisation {
		at := n - 1 - i // the first on top
		if known(u.Share) {
			values[at] = 100 * u.Share
		}
		// Above the bar, from its beginning: so it fits in whatever font it is shown.
		labels.XYs = append(labels.XYs, plotter.XY{X: 0, Y: float64(at)})
		labels.Labels = append(labels.Labels, fmt.Sprintf("%s: %s of %d slots", u.Name, unit{factor: 100, suffix: " %"}.value(u.Share), u.Slots))
	}
	bars, err := plotter.NewBarChart(values, 11)
	if err != nil {
		return nil, err
	}
	bars.Offset = -5
	bars.Horizontal, bars.Color, bars.LineStyle.Width = true, rgb(0x00, 0x72, 0xb2), 0
	line, err := plotter.NewLine(plotter.XYs{{X: promised, Y: -0.6}, {X: promised, Y: float64(n) - 0.4}})
	if err != nil {
		return nil, err
	}
	line.Color, line.Dashes = rgb(0xd5, 0x5e, 0x00), []vg.Length{4, 3}
	texts, err := plotter.NewLabels(labels)
	if err != nil {
		return nil, err
	}
	for i := range texts.TextStyle {
		style(&texts.TextStyle[i], 8.5)
	}
	texts.Offset = vg.Point{X: 1, Y: 4}
	p.Add(bars, line, texts)
	legend.Add("in use", bars)
	legend.Add("promised", line)
	p.HideY()
	p.X.Min, p.X.Max, p.Y.Min, p.Y.Max = 0, 100, -0.6, float64(n)-0.4
	return render(p, legend, rowHeight*vg.Length(n)+65)
}

// newPlot begins a plot. What it shows stands above it: along the axis it could not
// be read without turning one's head.
func newPlot(title string) (*plot.Plot, *plot.Legend) {
	p := plot.New()
	p.Title.Text, p.Title.Padding = title, 6
	style(&p.Title.TextStyle, 10)
	for _, a := range []*plot.Axis{&p.X, &p.Y} {
		style(&a.Label.TextStyle, 9)
		style(&a.Tick.Label, 8.5)
		a.Label.Padding = 5
	}
	grid := plotter.NewGrid()
	for _, s := range []*draw.LineStyle{&grid.Horizontal, &grid.Vertical} {
		s.Color, s.Width = rgb(0xcc, 0xcc, 0xcc), 0.5
	}
	p.Add(grid)
	legend := plot.NewLegend()
	legend.Top, legend.Left, legend.Padding, legend.ThumbnailWidth = true, true, 5, 24
	style(&legend.TextStyle, 9)
	return p, &legend
}

func style(s *text.Style, size float64) {
	s.Font = font.Font{Typeface: "Liberation", Variant: "Sans", Size: font.Points(size)}
}

// render draws a plot with its legend at the right. The background is white, for
// readers whose page is dark.
func render(p *plot.Plot, legend *plot.Legend, height vg.Length) ([]byte, error) {
	canvas := vgsvg.New(imageWidth, height)
	whole := draw.New(canvas)
	whole.SetColor(color.White)
	whole.Fill(whole.Rectangle.Path())
	inner := draw.Crop(whole, margin, -margin, margin, -margin)
	p.Draw(draw.Crop(inner, 0, -legendWidth, 0, 0))
	legend.Draw(draw.Crop(inner, imageWidth-2*margin-legendWidth+8, 0, 0, 0))
	var out bytes.Buffer
	if _, err := canvas.WriteTo(&out); err != nil {
		return nil, err
	}
	// Few have the font that was measured; the others are as wide.
	return bytes.ReplaceAll(out.Bytes(), []byte("Liberation Sans;"), []byte("Liberation Sans,Arial,Helvetica,sans-serif;")), nil
}

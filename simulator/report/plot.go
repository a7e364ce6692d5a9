package report

import (
	"bytes"
	"errors"
	"fmt"
	"image/color"
	"io"
	"math"
	"path/filepath"
	"slices"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
	"gonum.org/v1/plot/vg/vgsvg"
)

// Point is one point of a curve.
type Point struct{ X, Y float64 }

// Curve is one line of a panel.
type Curve struct {
	Name string
	// Points are ascending in X.
	Points []Point
}

// Panel is one diagram with its own axes.
type Panel struct {
	Title, X, Y string
	// LogX draws X logarithmically; points that are not positive are left out.
	LogX   bool
	Curves []Curve
}

// maxPoints is how many points of a curve are drawn: more than a screen shows,
// few enough for a small file.
const maxPoints = 500

// Distribution is the panel of which share of requests had their first token
// within a time: one curve for each list of times in seconds.
func Distribution(title string, seconds map[string][]float64, order []string) Panel {
	p := Panel{Title: title, X: "seconds to first token", Y: "share of requests", LogX: true}
	for _, name := range order {
		sorted := slices.Sorted(slices.Values(seconds[name]))
		c := Curve{Name: name}
		for i, x := range sorted {
			c.Points = append(c.Points, Point{x, float64(i+1) / float64(len(sorted))})
		}
		p.Curves = append(p.Curves, c)
	}
	return p
}

// PlotFormat is the format of a file with this name, or an error that says
// which there are.
func PlotFormat(file string) (string, error) {
	switch ext := strings.ToLower(filepath.Ext(file)); ext {
	case ".svg", ".png":
		return ext[1:], nil
	default:
		return "", fmt.Errorf("cannot plot to %q: name a file that ends with .svg or .png", file)
	}
}

// The size of a panel.
const (
	panelWidth  = 9 * vg.Inch
	panelHeight = 3.6 * vg.Inch
)

// Plot draws panels, one below the other and the legend beside them, as "svg"
// or "png". A name looks alike in all panels. The same panels give the same
// bytes.
func Plot(w io.Writer, format string, panels ...Panel) error {
	if len(panels) == 0 {
		return errors.New("nothing to plot")
	}
	legend := legendOf(panels)
	plots := make([][]*plot.Plot, len(panels))
	for i := range panels {
		p, err := panels[i].draw(legend.styles)
		if err != nil {
			return fmt.Errorf("plot %q: %w", panels[i].Title, err)
		}
		plots[i] = []*plot.Plot{p}
	}
	var canvas interface {
		vg.CanvasSizer
		io.WriterTo
	}
	height := panelHeight * vg.Length(len(panels))
	switch format {
	case "svg":
		canvas = vgsvg.New(panelWidth, height)
	case "png":
		canvas = vgimg.PngCanvas{Canvas: vgimg.NewWith(vgimg.UseWH(panelWidth, height), vgimg.UseDPI(120))}
	default:
		return fmt.Errorf("plot format %q is unknown; write svg or png", format)
	}
	on := draw.Crop(draw.New(canvas), 6, -6, 6, -6)
	legend.Draw(on)
	on = draw.Crop(on, 0, -legend.Rectangle(on).Size().X-12, 0, 0)
	for i, line := range plot.Align(plots, draw.Tiles{Rows: len(plots), Cols: 1, PadY: 12}, on) {
		plots[i][0].Draw(line[0])
	}
	if format == "png" {
		_, err := canvas.WriteTo(w)
		return err
	}
	// The library names one font that few have installed. The others have its
	// measures.
	var svg bytes.Buffer
	if _, err := canvas.WriteTo(&svg); err != nil {
		return err
	}
	_, err := w.Write(bytes.ReplaceAll(svg.Bytes(), []byte("font-family:Liberation Sans;"), []byte("font-family:Liberation Sans,Arial,Helvetica,sans-serif;")))
	return err
}

// legend says which line is whose.
type legend struct {
	plot.Legend
	styles map[string]draw.LineStyle
}

// legendOf gives each name of the panels that has something to show its look,
// in the order in which they are met.
func legendOf(panels []Panel) legend {
	l := legend{plot.NewLegend(), make(map[string]draw.LineStyle)}
	l.TextStyle.Font.Variant = "Sans"
	l.Top, l.ThumbnailWidth, l.Padding = true, 24, 3
	for i := range panels {
		for _, c := range panels[i].Curves {
			if _, met := l.styles[c.Name]; met || len(panels[i].visible(c.Points)) == 0 {
				continue
			}
			style := styleOf(len(l.styles))
			l.styles[c.Name] = style
			l.Add(c.Name, &plotter.Line{LineStyle: style})
		}
	}
	return l
}

func (p *Panel) draw(styles map[string]draw.LineStyle) (*plot.Plot, error) {
	d := plot.New()
	d.Title.Text, d.X.Label.Text, d.Y.Label.Text = p.Title, p.X, p.Y
	for _, style := range []*font.Font{
		&d.Title.TextStyle.Font, &d.X.Label.TextStyle.Font, &d.Y.Label.TextStyle.Font, &d.X.Tick.Label.Font, &d.Y.Tick.Label.Font,
	} {
		style.Variant = "Sans"
	}
	d.Y.Min = 0
	grid := plotter.NewGrid()
	grid.Horizontal.Color, grid.Vertical.Color = color.Gray{225}, color.Gray{225}
	d.Add(grid)
	for _, c := range p.Curves {
		points := p.visible(c.Points)
		if len(points) == 0 {
			continue // nothing to show, as of a policy that served nobody
		}
		line, err := plotter.NewLine(points)
		if err != nil {
			return nil, fmt.Errorf("curve %s: %w", c.Name, err)
		}
		line.LineStyle = styles[c.Name]
		d.Add(line)
	}
	if p.LogX && 0 < d.X.Min && d.X.Min < d.X.Max { // else nothing or one point was drawn
		d.X.Scale = plot.LogScale{}
		d.X.Tick.Marker = plot.LogTicks{Prec: -1}
	}
	return d, nil
}

// visible are a curve's points that can be drawn, thinned out evenly; the first
// and the last stay.
func (p *Panel) visible(points []Point) plotter.XYs {
	var shown plotter.XYs
	for _, at := range points {
		if (at.X > 0 || !p.LogX) && !math.IsNaN(at.Y) && !math.IsInf(at.X+at.Y, 0) {
			shown = append(shown, plotter.XY{X: at.X, Y: at.Y})
		}
	}
	if len(shown) <= maxPoints {
		return shown
	}
	thin := make(plotter.XYs, maxPoints)
	for i := range thin {
		thin[i] = shown[i*(len(shown)-1)/(maxPoints-1)]
	}
	return thin
}

// palette is that of Okabe and Ito, which the colour-blind tell apart, without
// its yellow, which is too light for a line.
var palette = [...]color.RGBA{
	{0, 0, 0, 255},
	{213, 94, 0, 255},
	{0, 114, 178, 255},
	{0, 158, 115, 255},
	{204, 121, 167, 255},
	{230, 159, 0, 255},
	{86, 180, 233, 255},
}

// styleOf is the look of the i-th curve: colours first, then dashes.
func styleOf(i int) draw.LineStyle {
	s := draw.LineStyle{Color: palette[i%len(palette)], Width: vg.Points(1.5)}
	switch i / len(palette) % 3 {
	case 1:
		s.Dashes = []vg.Length{6, 3}
	case 2:
		s.Dashes = []vg.Length{2, 2}
	}
	return s
}

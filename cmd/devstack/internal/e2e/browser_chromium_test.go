//go:build browser

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"

	"github.com/nodpt/executor/cmd/devstack/internal/harness"
	"github.com/nodpt/executor/cmd/devstack/internal/temporald"
	"github.com/nodpt/executor/cmd/devstack/internal/uiserver"
)

const (
	// imagesVariable, if 1, writes the pictures of the documentation.
	imagesVariable = "UPDATE_IMAGES"
	// maxPicture keeps the repository small.
	maxPicture = 150 << 10
	// step is how long the browser may take over one command.
	step = 20 * time.Second
	// The width of all pages, and the height unless a picture needs another.
	pageWidth, pageHeight = 1280, 800
)

// browser is a Chromium that looks at the Web UI of a Temporal server of its own,
// whose namespace is the one that the README's links name.
type browser struct {
	*bundle
	ui  string // the address of the Web UI, without a slash at its end
	tab context.Context
}

// newBrowser starts server, UI and browser; all end with the test. The environment
// is that of the bundle's executors.
func newBrowser(t *testing.T, environ map[string]string) *browser {
	t.Helper()
	port, err := shared.ports.Free(t.Context())
	require.NoError(t, err)
	dir := t.TempDir()
	temporal, err := temporald.Start(t.Context(), temporald.Config{
		Port: port, Database: filepath.Join(dir, "temporal.db"), LogFile: filepath.Join(dir, "temporal.log"),
	}, shared.ports)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, temporal.Stop()) })

	b := &browser{bundle: &bundle{harness.New(t, harness.Suite{Binary: shared.binary, Ports: shared.ports}, harness.Options{
		Temporal: temporal.Address(), Namespace: temporald.DefaultNamespace, Environ: environ,
	})}}
	ui, err := uiserver.Start(t.Context(), b.Port(), temporal.Address(), temporald.DefaultNamespace)
	require.NoError(t, err)
	t.Cleanup(ui.Stop)
	b.ui = ui.URL()

	// A home and a profile of its own, and nothing that calls anybody else.
	home := t.TempDir()
	allocator, cancel := chromedp.NewExecAllocator(context.WithoutCancel(t.Context()),
		chromedp.Headless, chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck, chromedp.DisableGPU,
		// It opens no page but ours, and containers rarely allow a sandbox.
		chromedp.NoSandbox,
		chromedp.UserDataDir(filepath.Join(home, "profile")), chromedp.Env("HOME="+home, "TZ=UTC"),
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true),
		chromedp.Flag("disable-dev-shm-usage", true), chromedp.Flag("hide-scrollbars", true),
		chromedp.Flag("force-color-profile", "srgb"), chromedp.Flag("lang", "en-US"),
	)
	t.Cleanup(cancel)
	b.tab, cancel = chromedp.NewContext(allocator)
	t.Cleanup(cancel)
	t.Cleanup(func() {
		if t.Failed() {
			b.saveFailure()
		}
		ctx, cancel := context.WithTimeout(b.tab, step)
		defer cancel()
		if err := chromedp.Cancel(ctx); err != nil {
			t.Logf("end of the browser: %v", err)
		}
	})
	// The first command starts the browser, and its context is that of the browser.
	require.NoError(t, chromedp.Do(b.tab, chromedp.EmulateViewport(pageWidth, pageHeight)),
		"run this test through `make test-browser`, which installs Chromium")
	return b
}

// saveFailure keeps what the browser shows with what else the test leaves behind.
func (b *browser) saveFailure() {
	ctx, cancel := context.WithTimeout(b.tab, step)
	defer cancel()
	shot, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	text, textErr := chromedp.Run(ctx, chromedp.Evaluate[string](`location.href + "\n\n" + document.body.innerText`))
	err = errors.Join(err, textErr,
		os.WriteFile(filepath.Join(b.Dir, "page.png"), shot, 0o600), os.WriteFile(filepath.Join(b.Dir, "page.txt"), []byte(text), 0o600))
	b.T.Logf("what the browser shows is in page.png and page.txt of this test, where DEVSTACK_TEST_KEEP names a directory (%v):\n%s", err, text)
}

// do gives the browser commands.
func (b *browser) do(what string, actions ...chromedp.Action[chromedp.Void]) {
	b.T.Helper()
	ctx, cancel := context.WithTimeout(b.tab, step)
	defer cancel()
	require.NoError(b.T, chromedp.Do(ctx, actions...), what)
}

// open goes to a path of the Web UI.
func (b *browser) open(path string) {
	b.T.Helper()
	b.do("open "+path, chromedp.Navigate(b.ui+path))
}

// read evaluates a JavaScript expression until its value is accepted. The page is
// another one after each click, so a failed evaluation is no reason to give up.
func read[V any](b *browser, what, expression string, accept func(V) bool) V {
	b.T.Helper()
	var value V
	b.Wait(what, func(context.Context) error {
		ctx, cancel := context.WithTimeout(b.tab, step)
		defer cancel()
		var err error
		if value, err = chromedp.Run(ctx, chromedp.Evaluate[V](expression)); err != nil {
			return err
		}
		if !accept(value) {
			return fmt.Errorf("the page says %v", value)
		}
		return nil
	})
	return value
}

// until waits until a JavaScript expression is true.
func (b *browser) until(what, expression string) {
	b.T.Helper()
	read(b, what, expression, func(ok bool) bool { return ok })
}

// contains waits until an element's text contains all of the texts.
func (b *browser) contains(selector string, texts ...string) {
	b.T.Helper()
	read(b, fmt.Sprintf("%s contains %q", selector, texts), visible(selector, "")+`?.innerText ?? ""`, holds(texts))
}

// holds accepts what contains all of the texts.
func holds(texts []string) func(string) bool {
	return func(got string) bool {
		return !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(got, text) })
	}
}

// visible is the JavaScript of the first visible element of a CSS selector with
// exactly this text, if any text is given. The UI has many of its parts twice, for
// narrow and for wide windows.
func visible(selector, text string) string {
	return fmt.Sprintf(`[...document.querySelectorAll(%s)].find(e => e.checkVisibility() && e.getClientRects().length > 0 && (%[2]s === "" || e.innerText.trim() === %[2]s))`,
		quote(selector), quote(text))
}

func quote(text string) string {
	quoted, err := json.Marshal(text)
	if err != nil {
		panic(err) // strings can always be encoded
	}
	return string(quoted)
}

// click moves the mouse to an element and presses its button, when the element is
// enabled, does not move any more, and nothing lies above it.
func (b *browser) click(selector, text string) {
	b.T.Helper()
	what := fmt.Sprintf("%s %q can be clicked", selector, text)
	b.until(what, `(() => {
		const e = `+visible(selector, text)+`;
		if (!e || e.disabled) return false;
		e.scrollIntoView({block: "center", inline: "nearest"}); // not below a heading that stays in place
		const r = e.getBoundingClientRect(), place = [r.x, r.y, r.width, r.height].join();
		const still = window.lastPlace === place;
		window.lastPlace = place;
		const top = document.elementFromPoint(r.x + r.width / 2, r.y + r.height / 2);
		return still && top !== null && (e.contains(top) || top.contains(e));
	})()`)
	b.do("click "+selector, chromedp.Click(chromedp.JSPath(visible(selector, text)), chromedp.NodeVisible))
}

// enter replaces the text of a field.
func (b *browser) enter(selector, text string) {
	b.T.Helper()
	b.click(selector, "")
	b.until("select its text", fmt.Sprintf(`(document.querySelector(%s).select(), true)`, quote(selector)))
	b.do("enter into "+selector, chromedp.SendKeys(chromedp.CSS(selector), text))
	b.until(selector+" holds what was entered", fmt.Sprintf(`document.querySelector(%s).value === %s`, quote(selector), quote(text)))
}

// openRun opens the page of the latest run of a workflow, which the UI finds by
// itself.
func (b *browser) openRun(workflowID, status string) {
	b.T.Helper()
	b.open("/namespaces/" + b.Options.Namespace + "/workflows/" + workflowID)
	b.contains(`[data-testid="workflow-id-heading"]`, workflowID)
	b.status(status)
}

// status waits until the page of a run says that this is its status.
func (b *browser) status(want string) {
	b.T.Helper()
	read(b, "status "+want, visible(`main [data-testid="execution-status"]`, "")+`?.textContent.trim() ?? ""`,
		func(got string) bool { return got == want })
}

// openTab clicks a tab of a run's page, by the last part of its address.
func (b *browser) openTab(name string) {
	b.T.Helper()
	b.click(fmt.Sprintf(`[data-testid="%s-tab"]`, name), "")
	b.until("the tab "+name, fmt.Sprintf(`location.pathname.endsWith(%s)`, quote("/"+name)))
}

// framed waits until one of the UI's frames, into which it puts what it makes of
// Markdown, contains all of the texts.
func (b *browser) framed(id string, texts ...string) {
	b.T.Helper()
	expression := fmt.Sprintf(`document.getElementById(%s)?.contentDocument?.body?.innerText ?? ""`, quote(id))
	read(b, fmt.Sprintf("%s contains %q", id, texts), expression, holds(texts))
}

// picture takes one for the documentation, of a page that is so high.
func (b *browser) picture(name string, height int64) {
	b.T.Helper()
	b.do("resize", chromedp.EmulateViewport(pageWidth, height))
	ctx, cancel := context.WithTimeout(b.tab, step)
	defer cancel()
	_, err := chromedp.Run(ctx, chromedp.Evaluate[bool]( // when it is drawn in its new size
		`new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))`, chromedp.EvalAwaitPromise))
	require.NoError(b.T, err)
	shot, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	require.NoError(b.T, err)
	b.do("resize", chromedp.EmulateViewport(pageWidth, pageHeight))

	small, err := fewColors(shot)
	require.NoError(b.T, err)
	require.NotEmpty(b.T, small)
	require.Less(b.T, len(small), maxPicture, name)
	path := filepath.Join(b.Dir, name+".png")
	if os.Getenv(imagesVariable) == "1" {
		root, err := harness.RepositoryRoot()
		require.NoError(b.T, err)
		path = filepath.Join(root, "docs", "images", name+".png")
		require.NoError(b.T, os.MkdirAll(filepath.Dir(path), 0o755)) //nolint:gosec // G301: part of the repository
	}
	require.NoError(b.T, os.WriteFile(path, small, 0o644)) //nolint:gosec // G306: part of the repository
}

// fewColors encodes a PNG with the 256 colors it uses most, which is a third of
// its size and looks the same, because a user interface has few.
func fewColors(file []byte) ([]byte, error) {
	full, err := png.Decode(bytes.NewReader(file))
	if err != nil {
		return nil, err
	}
	uses := map[color.NRGBA]int{}
	bounds := full.Bounds()
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			uses[color.NRGBAModel.Convert(full.At(x, y)).(color.NRGBA)]++
		}
	}
	most := make([]color.NRGBA, 0, len(uses))
	for c := range uses {
		most = append(most, c)
	}
	slices.SortFunc(most, func(a, b color.NRGBA) int { return uses[b] - uses[a] })
	palette := make(color.Palette, 0, 256)
	for _, c := range most[:min(len(most), 256)] {
		palette = append(palette, c)
	}
	few := image.NewPaletted(bounds, palette)
	draw.Draw(few, bounds, full, bounds.Min, draw.Src)
	var out bytes.Buffer
	encoder := png.Encoder{CompressionLevel: png.BestCompression}
	err = encoder.Encode(&out, few)
	return out.Bytes(), err
}

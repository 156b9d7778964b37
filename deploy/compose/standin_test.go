//go:build compose

package compose

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"go/build"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// image is a file system made of programs and files of this machine.
type image struct {
	// changes are instructions of a Dockerfile: ENTRYPOINT, USER, ENV…
	changes []string
	// programs are found on PATH or given as paths; they come with the libraries
	// they need, and lie where they lie here.
	programs []string
	trees    []tree
	files    map[string]file
	dirs     []dir
}

// tree is a directory of this machine and where its files lie in the image.
type tree struct {
	from, to string
	skip     func(path string) bool // relative to from; nil: nothing
}

type file struct {
	mode    int64
	content []byte
}

type dir struct {
	path     string
	uid, gid int
	mode     int64
}

const usersOfImages = `root:x:0:0:root:/root:/bin/sh
nobody:x:65534:65534:nobody:/:/sbin/nologin
nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin
postgres:x:70:70:postgres:/var/lib/postgresql:/bin/sh
redis:x:999:1000:redis:/data:/sbin/nologin
temporal:x:1000:1000:temporal:/home/temporal:/bin/sh
`

// standIn is what takes the place of an image, or nil where nothing does. In each
// the user, the entry point and the owners of directories are those of the
// original.
func standIn(t *testing.T, name string) *image {
	t.Helper()
	repository, _, _ := strings.Cut(name, ":")
	switch repository {
	case "redis":
		return &image{
			programs: []string{"sh", "cp", "mv", "sed", "cut", "sha256sum", "tar", "redis-server", "redis-cli"},
			dirs:     []dir{{"data", 999, 1000, 0o755}},
			changes:  []string{"WORKDIR /data"},
		}
	case "postgres":
		bin := filepath.Dir(newest(t, "/usr/lib/postgresql/*/bin/initdb"))
		lib := filepath.Dir(bin)
		share := filepath.Join("/usr/share/postgresql", filepath.Base(lib))
		programs := []string{"sh", "rm"}
		for _, program := range []string{"postgres", "initdb", "pg_dump", "pg_isready", "psql"} {
			programs = append(programs, filepath.Join(bin, program))
		}
		return &image{
			programs: programs,
			trees: []tree{
				{from: filepath.Join(lib, "lib"), to: filepath.Join(lib, "lib"), skip: func(path string) bool {
					return strings.HasPrefix(path, "bitcode") || strings.HasPrefix(path, "llvmjit")
				}},
				{from: share, to: share},
				{from: "/usr/share/zoneinfo", to: "/usr/share/zoneinfo"},
			},
			files:   map[string]file{"usr/local/bin/docker-entrypoint.sh": {0o755, read(t, "testdata/postgres.sh")}},
			dirs:    []dir{{"var/lib/postgresql/data", 70, 70, 0o700}, {"var/run/postgresql", 70, 70, 0o775}},
			changes: []string{`ENTRYPOINT ["docker-entrypoint.sh"]`, `CMD ["postgres"]`, "ENV PATH=" + bin + ":/usr/local/bin:/usr/bin"},
		}
	case "temporalio/temporal":
		cli := filepath.Join(t.TempDir(), "temporal")
		run(t, []string{"CGO_ENABLED=0"}, "go", "build", "-o", cli, "./temporal")
		return &image{
			programs: []string{"sh"},
			files: map[string]file{
				"usr/local/bin/temporal": {0o755, read(t, cli)},
				"usr/local/bin/devstack": {0o755, read(t, filepath.Join(root, "bin", "devstack"))},
			},
			dirs:    []dir{{"home/temporal", 1000, 1000, 0o755}},
			changes: []string{`ENTRYPOINT ["temporal"]`, "USER temporal"},
		}
	case "prom/prometheus":
		return &image{
			programs: []string{"prometheus", "promtool"},
			dirs:     []dir{{"prometheus", 65534, 65534, 0o755}},
			changes:  []string{`ENTRYPOINT ["/bin/prometheus"]`, "USER nobody", "WORKDIR /prometheus"},
		}
	case "gcr.io/distroless/static-debian12":
		return &image{dirs: []dir{{"home/nonroot", 65532, 65532, 0o700}}, changes: []string{"USER 65532", "WORKDIR /home/nonroot"}}
	case "golang":
		return golang(t)
	}
	return nil
}

// golang is Go with the modules this module needs, as if it had downloaded them
// before, and with a build cache, because compiling all of it takes minutes.
func golang(t *testing.T) *image {
	t.Helper()
	goroot, err := filepath.EvalSymlinks(run(t, nil, "go", "env", "GOROOT"))
	require.NoError(t, err)
	tools := filepath.Join("pkg", "tool", run(t, nil, "go", "env", "GOOS")+"_"+run(t, nil, "go", "env", "GOARCH"))
	needed := []string{"bin/go", filepath.Join(tools, "asm"), filepath.Join(tools, "compile"), filepath.Join(tools, "link")}
	trees, files := modules(t)
	return &image{
		programs: []string{"sh", "mkdir"},
		trees: append(trees,
			tree{from: goroot, to: "/usr/local/go", skip: func(path string) bool {
				switch top, _, _ := strings.Cut(path, string(filepath.Separator)); top {
				case "src":
					return strings.HasPrefix(path, "src/cmd/") || ofNoUse(filepath.Join(goroot, path))
				case "bin", "pkg":
					return !slices.Contains(needed, path) && !strings.HasPrefix(path, "pkg/include")
				case "VERSION", "go.env", "lib":
					return false
				}
				return true
			}},
			tree{from: buildCache(t), to: "/root/.cache/go-build"}),
		files: files,
		changes: []string{
			"ENV PATH=/go/bin:/usr/local/go/bin:/usr/local/bin:/usr/bin:/bin", "ENV GOPATH=/go", "ENV GOTOOLCHAIN=local",
			"ENV GOPROXY=off", "ENV GOSUMDB=off", "WORKDIR /go",
		},
	}
}

// ofNoUse says that a build does not read a file.
func ofNoUse(path string) bool {
	if strings.Contains(path, "/testdata/") || strings.HasSuffix(path, "_test.go") {
		return true
	}
	if !strings.HasSuffix(path, ".go") {
		return false
	}
	platform := build.Default
	platform.CgoEnabled = false
	match, err := platform.MatchFile(filepath.Dir(path), filepath.Base(path))
	return err == nil && !match
}

// buildCache fills a build cache with what the Dockerfile builds, and nothing
// else. It is kept between runs.
func buildCache(t *testing.T) string {
	t.Helper()
	caches, err := os.UserCacheDir()
	require.NoError(t, err)
	cache := filepath.Join(caches, "nodpt-executor", "image-build")
	dockerfile := string(read(t, filepath.Join(root, "deploy", "Dockerfile")))
	require.Regexp(t, `(?m)^RUN scripts/build /out/executor `, dockerfile)
	run(t, []string{"GOCACHE=" + cache, "GOFLAGS="}, filepath.Join(root, "scripts", "build"), filepath.Join(t.TempDir(), "executor"), "dev")
	return cache
}

// modules are what Go's module cache holds of this module's needs: the unpacked
// ones that go.mod names, and the files downloaded for those that go.sum names.
func modules(t *testing.T) ([]tree, map[string]file) {
	t.Helper()
	cache, to := run(t, nil, "go", "env", "GOMODCACHE"), "/go/pkg/mod"
	var trees []tree
	for m := json.NewDecoder(strings.NewReader(run(t, nil, "go", "mod", "download", "-json"))); m.More(); {
		var module struct{ Dir string }
		require.NoError(t, m.Decode(&module))
		relative, err := filepath.Rel(cache, module.Dir)
		require.NoError(t, err)
		trees = append(trees, tree{from: module.Dir, to: filepath.Join(to, relative), skip: func(path string) bool {
			return ofNoUse(filepath.Join(module.Dir, path))
		}})
	}
	files := map[string]file{}
	for line := range strings.Lines(string(read(t, filepath.Join(root, "go.sum")))) {
		words := strings.Fields(line)
		require.Len(t, words, 3)
		// Capital letters are escaped in the names of these files.
		path := regexp.MustCompile("[A-Z]").ReplaceAllStringFunc(words[0], func(s string) string { return "!" + strings.ToLower(s) })
		for _, kind := range []string{".info", ".mod", ".zip", ".ziphash"} {
			name := filepath.Join("cache", "download", path, "@v", strings.TrimSuffix(words[1], "/go.mod")+kind)
			content, err := os.ReadFile(filepath.Join(cache, name))
			if errors.Is(err, fs.ErrNotExist) {
				continue // not needed here, so not there either
			}
			require.NoError(t, err)
			files[filepath.Join(to, name)] = file{0o644, content}
		}
	}
	return trees, files
}

// importAs makes the image on the engine.
func (i *image) importAs(t *testing.T, e *engine, name string) {
	t.Helper()
	args := []string{"import"}
	for _, change := range i.changes {
		args = append(args, "--change", change)
	}
	reader, writer := io.Pipe()
	go func() { writer.CloseWithError(i.write(t.Context(), writer)) }()
	_, err := e.input(t.Context(), reader, append(args, "-", name)...)
	require.NoError(t, err)
}

// layer writes a file system, creating directories on the way.
type layer struct {
	*tar.Writer
	written map[string]bool
	// now is when all files were changed last: Go touches those of its build cache
	// that look old, and each would be copied into the container.
	now time.Time
}

func (i *image) write(ctx context.Context, w io.Writer) error {
	l := &layer{tar.NewWriter(w), map[string]bool{}, time.Now()}
	// Where this machine has /lib as a link to usr/lib, so has the image.
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
		target, err := os.Readlink("/" + name)
		if err != nil {
			continue
		}
		l.written[name] = true
		if err := l.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}); err != nil {
			return err
		}
	}
	for _, d := range append(i.dirs, dir{"tmp", 0, 0, 0o1777}) {
		if err := l.dir(d); err != nil {
			return err
		}
	}
	if err := l.file("etc/passwd", file{0o644, []byte(usersOfImages)}); err != nil {
		return err
	}
	for _, program := range i.programs {
		if err := l.program(ctx, program); err != nil {
			return err
		}
	}
	for _, t := range i.trees {
		if err := l.tree(t); err != nil {
			return err
		}
	}
	for name, f := range i.files {
		if err := l.file(name, f); err != nil {
			return err
		}
	}
	return l.Close()
}

func (l *layer) dir(d dir) error {
	if d.path == "." || l.written[d.path] {
		return nil
	}
	if err := l.dir(dir{path: filepath.Dir(d.path), mode: 0o755}); err != nil {
		return err
	}
	l.written[d.path] = true
	return l.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d.path + "/", Mode: d.mode, Uid: d.uid, Gid: d.gid})
}

func (l *layer) file(name string, f file) error {
	name = strings.TrimPrefix(name, "/")
	if l.written[name] {
		return nil
	}
	if err := l.dir(dir{path: filepath.Dir(name), mode: 0o755}); err != nil {
		return err
	}
	l.written[name] = true
	if err := l.WriteHeader(&tar.Header{Name: name, Mode: f.mode, Size: int64(len(f.content)), ModTime: l.now}); err != nil {
		return err
	}
	_, err := l.Write(f.content)
	return err
}

// copy puts a file of this machine into the image, by default at the same place.
func (l *layer) copy(from, to string) error {
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return l.file(to, file{int64(info.Mode().Perm()), content})
}

// program writes a program and the libraries that the loader would load for it.
func (l *layer) program(ctx context.Context, name string) error {
	path, err := exec.LookPath(name)
	if err != nil {
		return err
	}
	// Fails for programs without libraries.
	libraries, _ := exec.CommandContext(ctx, "ldd", path).Output()
	paths := []string{path}
	for _, m := range regexp.MustCompile(`(?m)(/\S+) \(0x`).FindAllSubmatch(libraries, -1) {
		paths = append(paths, string(m[1]))
	}
	for _, path := range paths {
		directory, err := filepath.EvalSymlinks(filepath.Dir(path))
		if err != nil {
			return err
		}
		if err := l.copy(path, filepath.Join(directory, filepath.Base(path))); err != nil {
			return err
		}
	}
	return nil
}

func (l *layer) tree(t tree) error {
	return filepath.WalkDir(t.from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(t.from, path)
		if err != nil {
			return err
		}
		if entry.IsDir() || t.skip != nil && t.skip(relative) {
			return nil
		}
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
			return nil // links to nothing, and links to directories
		}
		if err != nil {
			return err
		}
		return l.copy(path, filepath.Join(t.to, relative))
	})
}

// run returns what a command of this machine writes, without the last newline.
func run(t *testing.T, environ []string, name string, args ...string) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append(os.Environ(), environ...)
	cmd.Stderr = &stderr
	output, err := cmd.Output()
	require.NoError(t, err, "%s %s: %s", name, args, stderr.String())
	return strings.TrimSuffix(string(output), "\n")
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	return content
}

// newest is the last file that matches.
func newest(t *testing.T, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	require.NoError(t, err)
	require.NotEmpty(t, found, "nothing matches %s: is it installed?", pattern)
	return slices.Max(found)
}

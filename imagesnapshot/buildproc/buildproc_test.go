package buildproc_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/buildproc"
	"berth.dev/berth/imagesnapshot/lifecycle"
	"berth.dev/berth/layerdisk"
)

// program builds berth once for all tests.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "berth-buildproc-")
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "berth")
	b, err := exec.Command("go", "build", "-o", out, "berth.dev/berth/cmd/berth").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, b)
	}
	return out, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if p, err := program(); err == nil {
		_ = os.RemoveAll(filepath.Dir(p))
	}
	os.Exit(code)
}

// hub is a registry that can be slow and can want a password.
type hub struct {
	*httptest.Server
	password string

	mu   sync.Mutex
	gets map[string]int
	// stuck, if not nil, holds up blobs until it is closed.
	stuck chan struct{}
	asked chan struct{}
}

func newHub(t *testing.T, password string) *hub {
	h := &hub{password: password, gets: map[string]int{}, asked: make(chan struct{}, 100)}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, p, _ := r.BasicAuth(); h.password != "" && p != h.password {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			h.mu.Lock()
			h.gets[r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]]++
			stuck := h.stuck
			h.mu.Unlock()
			if stuck != nil {
				h.asked <- struct{}{}
				select {
				case <-stuck:
				case <-r.Context().Done():
					return
				}
			}
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(h.Close)
	return h
}

func (h *hub) host() string { return h.Listener.Addr().String() }

func layer(t *testing.T, file string, size int) v1.Layer {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	content := make([]byte, size)
	_, _ = rand.Read(content)
	require.NoError(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: file, Mode: 0o644, Size: int64(size)}))
	_, err := w.Write(content)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	require.NoError(t, err)
	return l
}

func (h *hub) push(t *testing.T, repo string, layers ...v1.Layer) string {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layers...)
	require.NoError(t, err)
	cfg, err := img.ConfigFile()
	require.NoError(t, err)
	cfg.OS, cfg.Architecture = "linux", "amd64"
	img, err = mutate.ConfigFile(img, cfg)
	require.NoError(t, err)
	ref, err := name.ParseReference(h.host()+"/"+repo, name.Insecure)
	require.NoError(t, err)
	require.NoError(t, remote.Write(ref, img, remote.WithAuth(&authn.Basic{Username: "u", Password: h.password})))
	return h.host() + "/" + repo
}

func (h *hub) spec(images ...string) imagesnapshot.Spec {
	return imagesnapshot.Spec{
		Images: images, Platforms: []string{"linux/amd64"},
		Registries: []imagesnapshot.Registry{{Server: h.host(), PlainHTTP: true}},
	}
}

func open(t *testing.T, change ...func(*buildproc.Config)) (*buildproc.Builder, string) {
	t.Helper()
	berth, err := program()
	require.NoError(t, err)
	temp := filepath.Join(t.TempDir(), "tmp")
	cfg := buildproc.Config{Command: []string{berth}, TempDir: temp, Cgroup: cgroup(t)}
	for _, c := range change {
		c(&cfg)
	}
	b, err := buildproc.Open(cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		left, err := os.ReadDir(temp)
		require.NoError(t, err)
		require.Empty(t, left, "temporary files")
	})
	return b, temp
}

// cgroup makes a place for cgroups, if this machine lets us; whether or not, the tests hold.
func cgroup(t *testing.T) string {
	for _, mount := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(filepath.Join(mount, "cgroup.procs")); err != nil {
			continue
		}
		dir := filepath.Join(mount, "berth-test-"+strconv.Itoa(os.Getpid())+"-"+strings.ReplaceAll(t.Name(), "/", "-"))
		if os.Mkdir(dir, 0o755) != nil {
			continue
		}
		t.Cleanup(func() { require.NoError(t, os.Remove(dir), "no cgroup is left in it") })
		return dir
	}
	return ""
}

func disk(t *testing.T, size int64) blockdev.Device {
	path := filepath.Join(t.TempDir(), "disk")
	if size > 0 { // a file that exists is only for Reuse
		require.NoError(t, os.WriteFile(path, nil, 0o600))
		require.NoError(t, os.Truncate(path, size))
	}
	return blockdev.Device{Path: path}
}

func TestPlanAndBuild(t *testing.T) {
	h := newHub(t, "")
	base, app := layer(t, "base", 3<<20), layer(t, "app", 1<<20)
	first, second := h.push(t, "a:1", base), h.push(t, "b:1", base, app)
	b, _ := open(t)
	plan, err := b.Plan(t.Context(), lifecycle.PlanRequest{Spec: h.spec(first, second)})
	require.NoError(t, err)
	require.Len(t, plan.Layers, 2)
	require.Len(t, plan.Chains, 2)
	diffID, err := base.DiffID()
	require.NoError(t, err)
	require.Equal(t, diffID.String(), plan.Layers[0].DiffID.String())
	size, err := base.Size()
	require.NoError(t, err)
	require.Equal(t, size, plan.Layers[0].BlobBytes)
	blob, err := base.Digest()
	require.NoError(t, err)
	require.Zero(t, h.gets[blob.String()], "a plan fetches no layer")

	dev := disk(t, 0)
	var progress []int
	result, err := b.Build(t.Context(), lifecycle.BuildRequest{
		PlanRequest: lifecycle.PlanRequest{Spec: h.spec(first)}, Device: dev,
		Progress: func(p int) { progress = append(progress, p) },
	})
	require.NoError(t, err)
	ix, err := layerdisk.Parse(result.Index)
	require.NoError(t, err)
	require.Equal(t, first, ix.Images[0].Reference)
	require.Equal(t, size, result.FetchedBytes)
	require.NotEmpty(t, progress)
	require.IsIncreasing(t, append([]int{-1}, progress[len(progress)-1]))

	require.NoError(t, os.Truncate(dev.Path, 32<<20))
	result, err = b.Build(t.Context(), lifecycle.BuildRequest{PlanRequest: lifecycle.PlanRequest{Spec: h.spec(second)}, Device: dev, Reuse: true})
	require.NoError(t, err)
	require.EqualValues(t, 3<<20, result.ReusedBytes)
	require.Equal(t, 1, h.gets[blob.String()], "E-22: fetched once")
}

func TestErrorsKeepTheirClass(t *testing.T) {
	h := newHub(t, "")
	ref := h.push(t, "a:1", layer(t, "base", 3<<20))
	b, _ := open(t)
	build := func(dev blockdev.Device, reuse bool, images ...string) error {
		_, err := b.Build(t.Context(), lifecycle.BuildRequest{PlanRequest: lifecycle.PlanRequest{Spec: h.spec(images...)}, Device: dev, Reuse: reuse})
		return err
	}
	err := build(disk(t, 0), false, h.host()+"/none:1")
	require.True(t, errdefs.IsNotFound(err), "%v", err)
	err = build(disk(t, 1<<20), true, ref)
	require.True(t, errdefs.IsDataLoss(err), "%v", err)
	err = build(disk(t, 1<<20), false, ref)
	require.True(t, errdefs.IsAlreadyExists(err), "%v", err)
	_, err = b.Plan(t.Context(), lifecycle.PlanRequest{Spec: h.spec("oci:5000/a:1")})
	require.Error(t, err)
	require.NotContains(t, err.Error(), "no such file", "a reference never names files of this machine")
	bad, _ := open(t, func(c *buildproc.Config) { c.Command = []string{"/bin/sh", "-c", "echo trouble >&2; exit 3"} })
	_, err = bad.Plan(t.Context(), lifecycle.PlanRequest{Spec: h.spec(ref)})
	require.ErrorContains(t, err, "trouble")
	garbage, _ := open(t, func(c *buildproc.Config) { c.Command = []string{"/bin/sh", "-c", "echo garbage; sleep 1000"} })
	_, err = garbage.Plan(t.Context(), lifecycle.PlanRequest{Spec: h.spec(ref)})
	require.ErrorContains(t, err, "read output")
}

// TestSecrets is requirement "never in clear": not in the environment, on the command line, or in an error.
func TestSecrets(t *testing.T) {
	const password = "correct-horse"
	h := newHub(t, password)
	ref := h.push(t, "a:1", layer(t, "base", 1<<20))
	secrets := t.TempDir()
	write := func(name, user, pass string, mode os.FileMode) {
		auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + pass))
		path := filepath.Join(secrets, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path, []byte(fmt.Sprintf(`{"auths":{%q:{"auth":%q},"other.example":{"auth":"b3RoZXI6c2VjcmV0"}}}`, h.host(), auth)), mode))
		require.NoError(t, os.Chmod(path, mode))
	}
	write("pull.json", "u", password, 0o600)
	write("wrong.json", "u", "guessed-wrong", 0o600)
	write("open.json", "u", password, 0o644)
	write("owner-te%2Fnant/theirs.json", "u", password, 0o600)
	b, temp := open(t, func(c *buildproc.Config) { c.Secrets = buildproc.SecretDir(secrets) })
	plan := func(owner, secret string) error {
		sp := h.spec(ref)
		sp.Registries[0].Secret = secret
		_, err := b.Plan(t.Context(), lifecycle.PlanRequest{Owner: owner, Spec: sp})
		return err
	}
	require.NoError(t, plan("", "pull"))
	require.NoError(t, plan("te/nant", "theirs"))
	require.True(t, errdefs.IsNotFound(plan("", "theirs")), "another owner's")
	require.True(t, errdefs.IsNotFound(plan("te/nant", "pull")), "another owner's")
	require.True(t, errdefs.IsInvalidArgument(plan("", "../pull")))
	require.True(t, errdefs.IsFailedPrecondition(plan("", "open")))
	err := plan("", "wrong")
	require.Error(t, err)
	require.NotContains(t, err.Error(), "guessed")
	err = plan("", "")
	require.Error(t, err)

	h.mu.Lock()
	h.stuck = make(chan struct{})
	h.mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	sp := h.spec(ref)
	sp.Registries[0].Secret = "pull"
	go func() {
		_, err := b.Build(ctx, lifecycle.BuildRequest{PlanRequest: lifecycle.PlanRequest{Spec: sp}, Device: disk(t, 0)})
		ended <- err
	}()
	<-h.asked
	pid := child(t, temp)
	for _, file := range []string{"cmdline", "environ"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
		require.NoError(t, err)
		require.NotContains(t, string(text), password)
		require.NotContains(t, string(text), base64.StdEncoding.EncodeToString([]byte("u:"+password)))
	}
	files, err := filepath.Glob(filepath.Join(temp, "*", "config.json"))
	require.NoError(t, err)
	require.Len(t, files, 1)
	config, err := os.ReadFile(files[0])
	require.NoError(t, err)
	require.NotContains(t, string(config), "other.example", "only what the spec names")
	info, err := os.Stat(files[0])
	require.NoError(t, err)
	require.EqualValues(t, 0o600, info.Mode().Perm())
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
	require.NoDirExists(t, fmt.Sprintf("/proc/%d", pid))
}

// child finds the process that works in a directory below dir.
func child(t *testing.T, dir string) int {
	t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*/cwd")
	require.NoError(t, err)
	for _, p := range procs {
		if cwd, err := os.Readlink(p); err == nil && strings.HasPrefix(cwd, dir+"/") {
			pid, err := strconv.Atoi(strings.Split(p, "/")[2])
			require.NoError(t, err)
			return pid
		}
	}
	require.FailNow(t, "no process")
	return 0
}

// TestLimits reads them where the kernel has them.
func TestLimits(t *testing.T) {
	h := newHub(t, "")
	ref := h.push(t, "a:1", layer(t, "base", 1<<20))
	h.stuck = make(chan struct{})
	b, temp := open(t, func(c *buildproc.Config) { c.MemoryBytes = 1 << 30 })
	ended := make(chan error, 1)
	go func() {
		_, err := b.Build(t.Context(), lifecycle.BuildRequest{PlanRequest: lifecycle.PlanRequest{Spec: h.spec(ref)}, Device: disk(t, 0)})
		ended <- err
	}()
	<-h.asked
	pid := child(t, temp)
	in, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	require.NoError(t, err)
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	require.NoError(t, err)
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	require.NoError(t, err)
	if !strings.Contains(string(in), "berth-build-") {
		t.Log("no cgroup can be made here")
	}
	// Controllers or their substitutes: one of them is there.
	require.True(t, strings.Contains(string(limits), strconv.Itoa(1<<30)) || strings.Contains(string(in), "berth-build-"), "%s", limits)
	nice := strings.Fields(string(stat)[strings.LastIndex(string(stat), ")")+2:])[16]
	require.Contains(t, []string{"10", "0"}, nice)
	close(h.stuck)
	require.NoError(t, <-ended)
}

func TestMemoryLimitHolds(t *testing.T) {
	b, _ := open(t, func(c *buildproc.Config) {
		c.MemoryBytes = 64 << 20
		c.Command = []string{"/bin/sh", "-c", `x=$(head -c 500000000 /dev/zero | tr '\0' x); echo "{\"event\":\"contents\",\"contents\":{}}"`}
	})
	_, err := b.Plan(t.Context(), lifecycle.PlanRequest{})
	require.Error(t, err, "a shell variable of 500 MB in 64 MiB")
}

// TestNothingOutlives: neither what the process started, nor the process its daemon.
func TestNothingOutlives(t *testing.T) {
	mark := filepath.Join(t.TempDir(), "pid")
	script := fmt.Sprintf(`sleep 1000 & echo $! > %s; echo '{"event":"contents","contents":{}}'; %%s`, mark)
	gone := func() {
		require.Eventually(t, func() bool {
			b, err := os.ReadFile(mark)
			if err != nil || len(b) == 0 {
				return false
			}
			state, err := os.ReadFile("/proc/" + strings.TrimSpace(string(b)) + "/stat")
			return err != nil || strings.Contains(string(state), ") Z ")
		}, 10*time.Second, 10*time.Millisecond)
		require.NoError(t, os.Remove(mark))
	}
	b, _ := open(t, func(c *buildproc.Config) { c.Command = []string{"/bin/sh", "-c", fmt.Sprintf(script, "exit 0")} })
	_, err := b.Plan(t.Context(), lifecycle.PlanRequest{})
	require.NoError(t, err)
	gone()
	b, _ = open(t, func(c *buildproc.Config) { c.Command = []string{"/bin/sh", "-c", fmt.Sprintf(script, "sleep 1000")} })
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err = b.Plan(ctx, lifecycle.PlanRequest{})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	gone()
}

func TestOpenClearsLeftovers(t *testing.T) {
	dir := t.TempDir()
	left := filepath.Join(dir, "build-123")
	require.NoError(t, os.MkdirAll(left, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(left, "config.json"), []byte("secret"), 0o600))
	other := filepath.Join(dir, "mine")
	require.NoError(t, os.WriteFile(other, nil, 0o600))
	_, err := buildproc.Open(buildproc.Config{Command: []string{"berth"}, TempDir: dir})
	require.NoError(t, err)
	require.NoDirExists(t, left)
	require.FileExists(t, other)
	_, err = buildproc.Open(buildproc.Config{TempDir: dir})
	require.True(t, errdefs.IsInvalidArgument(err))
	_, err = buildproc.Open(buildproc.Config{Command: []string{"berth"}, TempDir: dir, CPUWeight: 20000})
	require.True(t, errdefs.IsInvalidArgument(err))
}

package buildproc_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/imagesnapshot/buildproc"
	"berth.dev/berth/imagesnapshot/lifecycle"
)

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

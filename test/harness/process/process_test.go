package process_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/test/harness/process"
	"berth.dev/berth/test/harness/wait"
)

func start(t *testing.T, script string) *process.Process {
	t.Helper()
	p, err := process.Start(t.Context(), process.Spec{Name: "child", Args: []string{"/bin/sh", "-c", script}, LogDir: t.TempDir()})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Kill()) })
	return p
}

func waitForLog(t *testing.T, p *process.Process, want string) {
	t.Helper()
	require.NoError(t, wait.Until(t.Context(), 10*time.Second, "log line "+want, func(context.Context) error {
		if !strings.Contains(p.LogTail(5), want) {
			return errors.New("log has: " + p.LogTail(5))
		}
		return nil
	}))
}

func TestStopIsPoliteAndCollectsTheExitStatus(t *testing.T) {
	p := start(t, `trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.05; done`)
	waitForLog(t, p, "ready")
	require.NoError(t, p.Err())
	require.NoError(t, p.Stop(10*time.Second))
	require.Contains(t, p.LogTail(1), "bye")
	require.ErrorContains(t, p.Err(), "exit status 0")
}

func TestStopReportsAProcessThatWouldNotEnd(t *testing.T) {
	p := start(t, `trap '' TERM; echo ready; while :; do sleep 0.05; done`)
	waitForLog(t, p, "ready")
	require.ErrorContains(t, p.Stop(50*time.Millisecond), "still running")
	require.Error(t, p.Err())
}

func TestStopReportsABadExitStatusWithTheLog(t *testing.T) {
	p := start(t, `trap 'echo broken; exit 3' TERM; echo ready; while :; do sleep 0.05; done`)
	waitForLog(t, p, "ready")
	err := p.Stop(10 * time.Second)
	require.ErrorContains(t, err, "exit status 3")
	require.ErrorContains(t, err, "broken")
}

func TestStopOfAnEndedProcessIsNoError(t *testing.T) {
	p := start(t, `exit 7`)
	<-p.Done()
	require.NoError(t, p.Stop(time.Second))
	require.ErrorContains(t, p.Err(), "exit status 7")
}

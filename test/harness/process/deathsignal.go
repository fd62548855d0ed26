package process

import (
	"os/exec"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// The kernel sends the parent death signal when the *thread* that started the child ends (prctl(2), PR_SET_PDEATHSIG),
// and Go ends threads as it likes. So one thread, locked for good, starts all children.
var starter = sync.OnceValue(func() chan<- func() { //nolint:gochecknoglobals // one thread per process is the point
	jobs := make(chan func())
	go func() {
		runtime.LockOSThread()
		for job := range jobs {
			job()
		}
	}()
	return jobs
})

// startWithDeathSignal starts cmd so that it is killed when this process dies, even by SIGKILL.
func startWithDeathSignal(cmd *exec.Cmd) error {
	cmd.SysProcAttr.Pdeathsig = unix.SIGKILL
	result := make(chan error)
	starter() <- func() { result <- cmd.Start() }
	return <-result
}

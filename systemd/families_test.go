package systemd_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev/sysblock"
)

// confine makes the test binary a process with the address families that it names, as systemd confines a service.
const confine = "BERTH_TEST_FAMILIES"

func TestMain(m *testing.M) {
	if allowed, ok := os.LookupEnv(confine); ok {
		if err := openSockets(strings.Fields(allowed)); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// openSockets opens one of each kind that berthd uses.
func openSockets(allowed []string) error {
	if err := restrict(allowed); err != nil {
		return fmt.Errorf("restrict address families: %w", err)
	}
	events, err := sysblock.Listen()
	if err != nil {
		return err
	}
	defer events.Close()
	for network, address := range map[string]string{
		"unix": filepath.Join(os.TempDir(), fmt.Sprintf("berth-families-%d", os.Getpid())),
		"tcp4": "127.0.0.1:0",
	} {
		l, err := new(net.ListenConfig).Listen(context.Background(), network, address)
		if err != nil {
			return err
		}
		l.Close()
	}
	return nil
}

// restrict does what RestrictAddressFamilies= does: socket(2) of any other family fails with EAFNOSUPPORT.
func restrict(allowed []string) error {
	numbers := map[string]uint32{
		"AF_UNIX": unix.AF_UNIX, "AF_INET": unix.AF_INET, "AF_INET6": unix.AF_INET6, "AF_NETLINK": unix.AF_NETLINK,
	}
	const ( // offsets in struct seccomp_data
		number   = 0
		argument = 16
	)
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: number},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_SOCKET, Jt: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: argument},
	}
	for _, name := range allowed {
		family, ok := numbers[name]
		if !ok {
			return fmt.Errorf("the test does not know %s", name)
		}
		filter = append(filter,
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: family, Jf: 1},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
	}
	filter = append(filter, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EAFNOSUPPORT)})
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	runtime.LockOSThread() // both calls are about this thread first
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program)))
	runtime.KeepAlive(filter)
	if errno != 0 {
		return errno
	}
	return nil
}

// TestAddressFamilies: what the unit allows is enough for the sockets of berthd, the one on which the kernel announces
// block devices among them.
func TestAddressFamilies(t *testing.T) {
	unit, err := os.ReadFile("berthd.service")
	require.NoError(t, err)
	_, rest, ok := strings.Cut(string(unit), "\nRestrictAddressFamilies=")
	require.True(t, ok)
	allowed, _, _ := strings.Cut(rest, "\n")
	open := func(allowed string) (string, error) {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), confine+"="+allowed)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := open("AF_UNIX AF_INET AF_INET6"); strings.Contains(out, "restrict address families") {
		t.Skip(out, err)
	} else {
		require.Error(t, err)
		require.Contains(t, out, "listen for events about devices: address family not supported", "the restriction works")
	}
	out, err := open(allowed)
	require.NoError(t, err, out)
}

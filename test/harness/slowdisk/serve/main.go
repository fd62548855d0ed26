// Command serve is a slow disk: a FUSE file with the bytes of another file, read at the speed of a volume that is being
// restored. It is a process of its own, so that whoever is killed while it reads the file hangs nothing: without this
// process the kernel gives up all reads. See package slowdisk.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"berth.dev/berth/test/harness/slowdisk/lazy"
)

func main() {
	dir := flag.String("mount", "", "`directory` to mount on")
	file := flag.String("file", "", "`file` with the bytes")
	socket := flag.String("socket", "", "unix `socket` to answer on")
	speed := flag.String("speed", "", "lazy.Speed as JSON")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	err := run(ctx, *dir, *file, *socket, *speed)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "slow disk:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, dir, file, socket, speedText string) (err error) {
	var speed lazy.Speed
	if err := json.Unmarshal([]byte(speedText), &speed); err != nil {
		return fmt.Errorf("parse speed: %w", err)
	}
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("open file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("look at file: %w", err)
	}
	v, err := lazy.New(info.Size(), speed)
	if err != nil {
		return err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	defer l.Close()
	if err := mount(dir, &disk{file: f, size: info.Size(), volume: v}); err != nil {
		return fmt.Errorf("mount on %s: %w", dir, err)
	}
	defer func() { err = errors.Join(err, unmount(dir)) }()
	web := &http.Server{Handler: handler(v), ReadHeaderTimeout: time.Second}
	served := make(chan error, 1)
	go func() { served <- web.Serve(l) }()
	select {
	case err = <-served:
	case <-ctx.Done():
		err = web.Close()
	}
	return err
}

// unmount also where it is in use: what still reads gets errors when this process ends. Others may have unmounted it
// before.
func unmount(dir string) error {
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}

// handler is what package slowdisk asks.
func handler(v *lazy.Volume) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) {
		if err := json.NewEncoder(w).Encode(v.Stats()); err != nil {
			fmt.Fprintln(os.Stderr, "answer:", err)
		}
	})
	mux.HandleFunc("POST /hold", func(http.ResponseWriter, *http.Request) { v.Hold() })
	mux.HandleFunc("POST /release", func(http.ResponseWriter, *http.Request) { v.Release() })
	mux.HandleFunc("POST /fail", func(http.ResponseWriter, *http.Request) { v.Fail(unix.EIO) })
	mux.HandleFunc("POST /mend", func(http.ResponseWriter, *http.Request) { v.Fail(nil) })
	return mux
}

// root has one file.
type root struct {
	fs.Inode
	disk *disk
}

var _ fs.NodeOnAdder = (*root)(nil)

// OnAdd implements fs.NodeOnAdder.
func (r *root) OnAdd(ctx context.Context) {
	r.AddChild("disk", r.NewPersistentInode(ctx, r.disk, fs.StableAttr{Mode: fuse.S_IFREG}), true)
}

// disk is the slow file.
type disk struct {
	fs.Inode
	file   *os.File
	size   int64
	volume *lazy.Volume
}

var (
	_ fs.NodeGetattrer = (*disk)(nil)
	_ fs.NodeOpener    = (*disk)(nil)
	_ fs.NodeReader    = (*disk)(nil)
)

// Getattr implements fs.NodeGetattrer.
func (d *disk) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = fuse.S_IFREG|0o600, uint64(d.size) //nolint:gosec // sizes are not negative
	return 0
}

// Open implements fs.NodeOpener; only for reading.
func (d *disk) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return nil, 0, syscall.EROFS
	}
	return nil, 0, 0
}

// Read implements fs.NodeReader. It does not end with whoever asked: neither does the read of a real disk.
func (d *disk) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if err := d.volume.Read(off, int64(len(dest))); err != nil {
		return nil, fs.ToErrno(err)
	}
	return fuse.ReadResultFd(d.file.Fd(), off, int(max(0, min(int64(len(dest)), d.size-off)))), 0
}

// mount without any helper program. Reads of a loop device above come as asynchronous direct I/O, which the kernel
// hands on one by one unless it is told that they may overtake one another (CAP_ASYNC_DIO).
func mount(dir string, d *disk) error {
	forever, attributes := time.Hour, 100*time.Millisecond // attributes are asked for again, so that death is noticed
	_, err := fs.Mount(dir, &root{disk: d}, &fs.Options{
		EntryTimeout: &forever, AttrTimeout: &attributes,
		MountOptions: fuse.MountOptions{
			FsName: "slowdisk", Name: "slowdisk", DirectMountStrict: true, ExtraCapabilities: fuse.CAP_ASYNC_DIO,
			MaxBackground: 256, MaxWrite: 1 << 20, DisableXAttrs: true,
		},
	})
	return err
}

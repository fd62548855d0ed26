// Package boltfile checks a bbolt database before it is used. bbolt maps its file into memory and believes what is
// there: a file that was cut off or overwritten makes it panic, run in circles, or end the process by a signal. Check
// reads the file, in bounded time and memory, and returns an error instead.
package boltfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// The format is that of go.etcd.io/bbolt, version 2, in the byte order of the machine.
const (
	magic         = 0xED0CDAED
	formatVersion = 2
	headerBytes   = 16
	elementBytes  = 16
	metaBytes     = 64
	noFreelist    = ^uint64(0)

	branchPage   = 1
	leafPage     = 2
	freelistPage = 16
	bucketLeaf   = 1

	// mostNested bounds the depth of buckets and trees; ours have three at most.
	mostNested = 64
)

// Check reads the database at path. A damaged one is errdefs.ErrDataLoss. One that does not exist is sound, because it
// is made when it is opened, and one that another process has open is not looked at.
func Check(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("check database: %w", err)
	}
	defer f.Close()
	// bbolt holds this lock while it has a file open.
	switch err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); { //nolint:gosec // a file descriptor
	case errors.Is(err, unix.EWOULDBLOCK):
		return nil
	case err != nil:
		return fmt.Errorf("lock database %s: %w", path, err)
	}
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("check database: %w", err)
	}
	if err := checkFile(f, info.Size()); err != nil {
		return fmt.Errorf("database %s is damaged: %w: %w", path, err, errdefs.ErrDataLoss)
	}
	return nil
}

// SetAside renames the database at path to a name with the time in it, which is returned.
func SetAside(path string, now time.Time) (string, error) {
	aside := path + ".damaged-" + now.UTC().Format("20060102T150405.000Z")
	if err := os.Rename(path, aside); err != nil {
		return "", fmt.Errorf("set damaged database aside: %w", err)
	}
	return aside, nil
}

// meta is what one of the first two pages says.
type meta struct{ pageSize, root, freelist, pages, txid uint64 }

func checkFile(f io.ReaderAt, size int64) error {
	m, err := readMeta(f, size)
	if err != nil {
		return err
	}
	if uint64(size)/m.pageSize < m.pages {
		return fmt.Errorf("it has %d bytes, %d pages of %d bytes are missing", size, m.pages-uint64(size)/m.pageSize, m.pageSize)
	}
	c := &checker{file: f, meta: m, used: make(map[uint64]bool)}
	if err := c.tree(m.root, 0); err != nil {
		return err
	}
	return c.freelist()
}

// readMeta gives the newer of the two meta pages that are whole.
func readMeta(f io.ReaderAt, size int64) (best meta, err error) {
	// The second page is where the first says; if that is broken any size of pages may be right.
	at := []int64{0}
	for pageSize := int64(1024); pageSize <= 64<<10; pageSize *= 2 {
		at = append(at, pageSize)
	}
	found := false
	for _, offset := range at {
		m, ok := metaAt(f, offset)
		if ok && (offset == 0 || m.pageSize == uint64(offset)) && (!found || m.txid > best.txid) {
			best, found = m, true
		}
	}
	if !found {
		return best, fmt.Errorf("it has %d bytes and neither of its two meta pages is whole", size)
	}
	return best, nil
}

func metaAt(f io.ReaderAt, offset int64) (m meta, ok bool) {
	buf := make([]byte, metaBytes)
	if _, err := f.ReadAt(buf, offset+headerBytes); err != nil {
		return m, false
	}
	u32, u64 := binary.NativeEndian.Uint32, binary.NativeEndian.Uint64
	sum := fnv.New64a()
	sum.Write(buf[:56])
	if u32(buf) != magic || u32(buf[4:]) != formatVersion || u64(buf[56:]) != sum.Sum64() {
		return m, false
	}
	m = meta{pageSize: uint64(u32(buf[8:])), root: u64(buf[16:]), freelist: u64(buf[32:]), pages: u64(buf[40:]), txid: u64(buf[48:])}
	return m, m.pageSize >= 1024 && m.pageSize <= 64<<10 && m.pageSize&(m.pageSize-1) == 0
}

// checker follows all references of a database.
type checker struct {
	file io.ReaderAt
	meta meta
	// used are the pages that something refers to.
	used map[uint64]bool
}

// page reads a page with what overflows it. Each is referred to once.
func (c *checker) page(id uint64) ([]byte, error) {
	if id < 2 || id >= c.meta.pages {
		return nil, fmt.Errorf("it refers to page %d of %d", id, c.meta.pages)
	}
	head := make([]byte, headerBytes)
	offset := int64(id * c.meta.pageSize) //nolint:gosec // below the size of the file
	if _, err := c.file.ReadAt(head, offset); err != nil {
		return nil, fmt.Errorf("read page %d: %w", id, err)
	}
	overflow := uint64(binary.NativeEndian.Uint32(head[12:]))
	if got := binary.NativeEndian.Uint64(head); got != id || id+overflow >= c.meta.pages {
		return nil, fmt.Errorf("page %d is not what it should be", id)
	}
	for i := id; i <= id+overflow; i++ {
		if c.used[i] {
			return nil, fmt.Errorf("page %d is used twice", i)
		}
		c.used[i] = true
	}
	data := make([]byte, (1+overflow)*c.meta.pageSize)
	if _, err := c.file.ReadAt(data, offset); err != nil {
		return nil, fmt.Errorf("read page %d: %w", id, err)
	}
	return data, nil
}

func (c *checker) tree(id uint64, depth int) error {
	if depth > mostNested {
		return fmt.Errorf("page %d is nested too deep", id)
	}
	data, err := c.page(id)
	if err != nil {
		return err
	}
	if err := c.nodes(data, depth); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

// nodes checks the elements of a page, or of a bucket that is small enough to lie within one.
func (c *checker) nodes(data []byte, depth int) error {
	flags, count := binary.NativeEndian.Uint16(data[8:]), int(binary.NativeEndian.Uint16(data[10:]))
	if flags != branchPage && flags != leafPage || flags == branchPage && count == 0 {
		return fmt.Errorf("it is no page of a tree: type %#x with %d elements", flags, count)
	}
	if headerBytes+count*elementBytes > len(data) {
		return fmt.Errorf("%d elements do not fit", count)
	}
	var last []byte
	for i := range count {
		at := headerBytes + i*elementBytes
		key, value, err := element(data, at, flags)
		if err != nil {
			return fmt.Errorf("element %d: %w", i, err)
		}
		if i > 0 && bytes.Compare(last, key) >= 0 {
			return fmt.Errorf("element %d is out of order", i)
		}
		last = key
		switch {
		case flags == branchPage:
			err = c.tree(binary.NativeEndian.Uint64(data[at+8:]), depth+1)
		case binary.NativeEndian.Uint32(data[at:])&bucketLeaf != 0:
			err = c.bucket(value, depth+1)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// element gives key and value of the element at an offset; those of a branch have no value.
func element(data []byte, at int, flags uint16) (key, value []byte, err error) {
	u32 := func(i int) uint64 { return uint64(binary.NativeEndian.Uint32(data[at+i:])) }
	pos, keyBytes, valueBytes := u32(4), u32(8), u32(12)
	if flags == branchPage {
		pos, keyBytes, valueBytes = u32(0), u32(4), 0
	}
	from := uint64(at) + pos //nolint:gosec // an offset in memory
	if pos < elementBytes || from+keyBytes+valueBytes > uint64(len(data)) {
		return nil, nil, fmt.Errorf("its %d bytes do not fit", keyBytes+valueBytes)
	}
	return data[from : from+keyBytes], data[from+keyBytes : from+keyBytes+valueBytes], nil
}

// bucket checks the bucket that a value names or is.
func (c *checker) bucket(value []byte, depth int) error {
	if len(value) < headerBytes || depth > mostNested {
		return fmt.Errorf("a bucket of %d bytes, %d deep", len(value), depth)
	}
	if root := binary.NativeEndian.Uint64(value); root != 0 {
		return c.tree(root, depth)
	}
	if len(value) < 2*headerBytes {
		return fmt.Errorf("a bucket of %d bytes", len(value))
	}
	inline := value[headerBytes:]
	if binary.NativeEndian.Uint16(inline[8:]) != leafPage {
		return errors.New("a small bucket is no leaf")
	}
	return c.nodes(inline, depth)
}

// freelist checks that no page is free that is used, and that each is free once.
func (c *checker) freelist() error {
	if c.meta.freelist == noFreelist {
		return nil
	}
	data, err := c.page(c.meta.freelist)
	if err != nil {
		return fmt.Errorf("list of free pages: %w", err)
	}
	count, first := uint64(binary.NativeEndian.Uint16(data[10:])), uint64(0)
	if count == 0xffff {
		count, first = binary.NativeEndian.Uint64(data[headerBytes:]), 1
	}
	room := uint64(len(data)-headerBytes) / 8
	if binary.NativeEndian.Uint16(data[8:]) != freelistPage || count > room-first {
		return fmt.Errorf("page %d is no list of %d free pages", c.meta.freelist, count)
	}
	for i := range count {
		id := binary.NativeEndian.Uint64(data[headerBytes+(first+i)*8:])
		if id < 2 || id >= c.meta.pages || c.used[id] {
			return fmt.Errorf("page %d is free and used, or free twice, or not there", id)
		}
		c.used[id] = true
	}
	return nil
}

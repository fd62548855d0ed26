package recorder

import (
	"math/bits"
	"strconv"
	"strings"
)

// event is one line of the trace: pages of a file, or of a block device, that came into the page cache.
type event struct {
	micros int64 // time
	pid    int
	dev    string // major:minor of the file system
	inode  uint64
	offset int64 // bytes
	length int64 // bytes
}

const (
	eventName = "mm_filemap_add_to_page_cache"
	// maxOrder bounds what is believed of a folio's size: 2^order pages, at most a huge page of 16 GiB.
	maxOrder = 22
)

// parseEvent reads a line such as
//
//	python3-30261   [000] ..... 12344.676727: mm_filemap_add_to_page_cache: dev 7:1 ino 24 pfn=0x322026 ofs=0 order=0
//
// of which older kernels leave out the order (include/trace/events/filemap.h). Names of programs may have spaces.
func parseEvent(line string, page int64) (e event, ok bool) {
	before, rest, found := strings.Cut(line, ": "+eventName+": ")
	if !found {
		return event{}, false
	}
	task := strings.TrimSpace(before[:max(0, strings.LastIndexByte(before, '['))])
	if strings.LastIndexByte(task, '-') < 0 {
		return event{}, false
	}
	e.pid, _ = strconv.Atoi(task[strings.LastIndexByte(task, '-')+1:])
	seconds, micros, found := strings.Cut(before[strings.LastIndexByte(before, ' ')+1:], ".")
	s, err := strconv.ParseInt(seconds, 10, 63)
	us, err2 := strconv.ParseInt(micros, 10, 32)
	if !found || err != nil || err2 != nil || bits.Len64(uint64(s)) > 40 {
		return event{}, false
	}
	e.micros = s*1_000_000 + us
	return e, e.fields(strings.Fields(rest), page)
}

func (e *event) fields(fields []string, page int64) bool {
	e.length = page
	e.offset = -1
	for i, f := range fields {
		switch {
		case f == "dev" && i+1 < len(fields):
			e.dev = fields[i+1]
		case f == "ino" && i+1 < len(fields):
			ino, err := strconv.ParseUint(fields[i+1], 16, 64)
			if err != nil {
				return false
			}
			e.inode = ino
		case strings.HasPrefix(f, "ofs="):
			offset, err := strconv.ParseInt(f[len("ofs="):], 10, 63)
			if err != nil {
				return false
			}
			e.offset = offset
		case strings.HasPrefix(f, "order="):
			order, err := strconv.ParseUint(f[len("order="):], 10, 8)
			if err != nil || order > maxOrder {
				return false
			}
			e.length = page << order
		}
	}
	return e.dev != "" && e.offset >= 0
}

// parseLost reads the kernel's note that it had no room for events: "CPU:3 [LOST 123 EVENTS]".
func parseLost(line string) int64 {
	_, rest, found := strings.Cut(line, "[LOST ")
	if !found {
		return 0
	}
	count, _, _ := strings.Cut(rest, " ")
	n, err := strconv.ParseInt(count, 10, 63)
	if err != nil {
		return 1 // at least
	}
	return n
}

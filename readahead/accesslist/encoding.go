package accesslist

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// The encoded form is a gzip stream of lines, each a word and what belongs to it:
//
//	berth-accesslist 1
//	image REFERENCE
//	platform PLATFORM
//	recorded RFC3339
//	disk DIGEST                 if there is one
//	m OFFSET LENGTH             a part of the block device
//	l DIGEST                    a layer; layers are counted from 0
//	f LAYER "PATH"              a file, quoted as in Go; files are counted from 0
//	r FILE OFFSET LENGTH        a part of a file
//
// Layers and files stand before the first line that needs them. Lines of parts are in the order of first access.
const (
	magic  = "berth-accesslist "
	format = "1"

	// MaxEncodedBytes of a list. 2,000 files take 20 KB; gRPC takes messages of 4 MiB.
	MaxEncodedBytes = 2 << 20
	// maxTextTotal bounds what the compressed form may grow to. MaxRanges of both kinds take a third of it, and the
	// rest has room for paths of 150 bytes for each.
	maxTextTotal = 64 << 20
	// maxLineBytes has room for a path of which each byte is quoted with four.
	maxLineBytes = 4*maxPathBytes + 64
)

// Encode writes the list, the same bytes for the same list. One that Check refuses is errdefs.ErrInvalidArgument.
func (l *List) Encode() ([]byte, error) {
	if err := l.Check(); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	zip, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return nil, fmt.Errorf("encode access list: %w", err)
	}
	w := bufio.NewWriter(zip)
	l.write(w)
	if err := errors.Join(w.Flush(), zip.Close()); err != nil {
		return nil, fmt.Errorf("encode access list: %w", err)
	}
	if out.Len() > MaxEncodedBytes {
		return nil, fmt.Errorf("encode access list: %d bytes, at most %d are allowed: %w", out.Len(), MaxEncodedBytes, errdefs.ErrInvalidArgument)
	}
	return out.Bytes(), nil
}

// WriteText writes the lines of the encoded form, without compression, for people and programs to read.
func (l *List) WriteText(out io.Writer) error {
	w := bufio.NewWriter(out)
	l.write(w)
	return w.Flush()
}

// write relies on the writer to keep the first error.
func (l *List) write(w *bufio.Writer) {
	fmt.Fprintf(w, "%s%s\nimage %s\nplatform %s\nrecorded %s\n", magic, format, l.Image, l.Platform, l.Recorded.UTC().Format(time.RFC3339))
	if l.Disk != "" {
		fmt.Fprintf(w, "disk %s\n", l.Disk)
	}
	for _, r := range l.Metadata {
		fmt.Fprintf(w, "m %d %d\n", r.Offset, r.Length)
	}
	type file struct {
		layer int
		path  string
	}
	layers := make(map[digest.Digest]int)
	files := make(map[file]int)
	for i := range l.Files {
		r := &l.Files[i]
		layer, ok := layers[r.DiffID]
		if !ok {
			layer = len(layers)
			layers[r.DiffID] = layer
			fmt.Fprintf(w, "l %s\n", r.DiffID)
		}
		f, ok := files[file{layer, r.Path}]
		if !ok {
			f = len(files)
			files[file{layer, r.Path}] = f
			fmt.Fprintf(w, "f %d %s\n", layer, strconv.QuoteToASCII(r.Path))
		}
		fmt.Fprintf(w, "r %d %d %d\n", f, r.Offset, r.Length)
	}
}

// Decode reads what Encode wrote and checks all of it; the data may come from strangers. Memory is bounded by a small
// multiple of what the largest list takes. Errors are errdefs.ErrInvalidArgument.
func Decode(data []byte) (*List, error) {
	l, err := decode(data)
	if err == nil {
		err = l.check()
	}
	if err != nil {
		return nil, fmt.Errorf("decode access list: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return l, nil
}

func decode(data []byte) (*List, error) {
	if len(data) > MaxEncodedBytes {
		return nil, fmt.Errorf("%d bytes, at most %d are allowed", len(data), MaxEncodedBytes)
	}
	zip, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	bounded := &io.LimitedReader{R: zip, N: maxTextTotal}
	lines := bufio.NewScanner(bounded)
	lines.Buffer(nil, maxLineBytes)
	var d decoder
	for d.line = 1; lines.Scan(); d.line++ {
		if err := d.next(lines.Text()); err != nil {
			return nil, fmt.Errorf("line %d: %w", d.line, err)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("line %d: %w", d.line, err)
	}
	if bounded.N == 0 {
		return nil, fmt.Errorf("it unpacks to more than %d bytes", maxTextTotal)
	}
	if d.line == 1 {
		return nil, errors.New("it is empty")
	}
	return &d.list, nil
}

type decoder struct {
	list   List
	line   int
	layers []digest.Digest
	files  []FileRange // no ranges yet
}

func (d *decoder) next(line string) error {
	if d.line == 1 {
		version, ok := strings.CutPrefix(line, magic)
		if !ok {
			return errors.New("not an access list")
		}
		if version != format {
			return fmt.Errorf("format %.20q is not known here, only %s: use the berth that wrote it", version, format)
		}
		return nil
	}
	word, rest, _ := strings.Cut(line, " ")
	switch word {
	case "m":
		n, err := numbers(rest, 2)
		if err != nil {
			return err
		}
		if len(d.list.Metadata) == MaxRanges {
			return fmt.Errorf("more than %d parts of the device", MaxRanges)
		}
		d.list.Metadata = append(d.list.Metadata, Range{n[0], n[1]})
		return nil
	case "l":
		if len(d.layers) == MaxLayers {
			return fmt.Errorf("more than %d layers", MaxLayers)
		}
		d.layers = append(d.layers, digest.Digest(rest))
		return nil
	case "f":
		return d.file(rest)
	case "r":
		n, err := numbers(rest, 3)
		if err != nil {
			return err
		}
		if n[0] >= int64(len(d.files)) || len(d.list.Files) == MaxRanges {
			return fmt.Errorf("part %d of file %d of %d, at most %d parts are allowed", len(d.list.Files), n[0], len(d.files), MaxRanges)
		}
		r := d.files[n[0]]
		r.Offset, r.Length = n[1], n[2]
		d.list.Files = append(d.list.Files, r)
		return nil
	}
	return d.head(word, rest)
}

func (d *decoder) head(word, value string) (err error) {
	var known bool
	switch word {
	case "image":
		known, d.list.Image = d.list.Image != "", value
	case "platform":
		known, d.list.Platform = d.list.Platform != "", value
	case "disk":
		known, d.list.Disk = d.list.Disk != "", digest.Digest(value)
	case "recorded":
		known = !d.list.Recorded.IsZero()
		d.list.Recorded, err = time.Parse(time.RFC3339, value)
		d.list.Recorded = d.list.Recorded.UTC()
	default:
		return fmt.Errorf("unknown word %.20q", word)
	}
	if known {
		return fmt.Errorf("%s is there twice", word)
	}
	return err
}

func (d *decoder) file(rest string) error {
	layer, quoted, _ := strings.Cut(rest, " ")
	n, err := numbers(layer, 1)
	if err != nil {
		return err
	}
	if n[0] >= int64(len(d.layers)) || len(d.files) == MaxRanges {
		return fmt.Errorf("file %d in layer %d of %d, at most %d files are allowed", len(d.files), n[0], len(d.layers), MaxRanges)
	}
	if !strings.HasPrefix(quoted, `"`) {
		return fmt.Errorf("path %.80s is not quoted", quoted)
	}
	path, err := strconv.Unquote(quoted)
	if err != nil {
		return fmt.Errorf("path %.80s: %w", quoted, err)
	}
	d.files = append(d.files, FileRange{DiffID: d.layers[n[0]], Path: path})
	return nil
}

// numbers reads that many decimal numbers that are not negative.
func numbers(text string, count int) (n [3]int64, err error) {
	fields := strings.Split(text, " ")
	if len(fields) != count {
		return n, fmt.Errorf("%.80q: want %d numbers", text, count)
	}
	for i, f := range fields {
		u, err := strconv.ParseUint(f, 10, 63)
		if err != nil {
			return n, fmt.Errorf("%.80q: want %d numbers: %w", text, count, err)
		}
		n[i] = int64(u) //nolint:gosec // 63 bits
	}
	return n, nil
}

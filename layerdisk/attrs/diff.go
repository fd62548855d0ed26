package attrs

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
)

// Kind of a difference.
type Kind int

// Kinds of differences.
const (
	// Changed is an attribute that has another value, or is there on one side only.
	Changed Kind = iota + 1
	// Missing is an entry that is wanted and not there.
	Missing
	// Extra is an entry that is there and not wanted.
	Extra
)

// String gives the word for the kind, as it stands in messages and JSON.
func (k Kind) String() string {
	switch k {
	case Changed:
		return "changed"
	case Missing:
		return "missing"
	case Extra:
		return "extra"
	}
	return "kind(" + strconv.Itoa(int(k)) + ")"
}

// Difference between two trees: a whole entry, or one attribute of it.
type Difference struct {
	Kind Kind
	// Path of the entry, any bytes.
	Path string
	// Attribute says what has changed: type, mode, uid, gid, size, mtime, target, device, link, content or
	// xattr:NAME. It is empty for a missing or extra entry.
	Attribute string
	// Want and Got are the values as they stand in a listing; empty on the side that has none.
	Want, Got string
}

// String gives one line, printable whatever the path holds.
func (d Difference) String() string {
	switch d.Kind {
	case Missing:
		return Escape(d.Path) + ": missing (" + d.Want + ")"
	case Extra:
		return Escape(d.Path) + ": not wanted (" + d.Got + ")"
	case Changed:
	}
	return fmt.Sprintf("%s: %s is %s, want %s", Escape(d.Path), Escape(d.Attribute), orNone(d.Got), orNone(d.Want))
}

func orNone(s string) string {
	if s == "" {
		return "not there"
	}
	return s
}

// MarshalJSON writes path and attribute as Escape does, because JSON cannot hold all bytes.
func (d Difference) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Kind      string `json:"kind"`
		Path      string `json:"path"`
		Attribute string `json:"attribute,omitempty"`
		Want      string `json:"want,omitempty"`
		Got       string `json:"got,omitempty"`
	}{d.Kind.String(), Escape(d.Path), Escape(d.Attribute), d.Want, d.Got})
}

// Diff reports every difference between two sorted listings, by path and attribute.
//
// Content is compared through hard links: an entry that has become a file of its own with the same bytes differs in its
// link alone.
func Diff(want, got []Entry) []Difference {
	var diffs []Difference
	allWant, allGot := byPath(want), byPath(got)
	for len(want) > 0 || len(got) > 0 {
		switch {
		case len(got) == 0 || len(want) > 0 && want[0].Path < got[0].Path:
			diffs = append(diffs, Difference{Kind: Missing, Path: want[0].Path, Want: describe(&want[0])})
			want = want[1:]
		case len(want) == 0 || got[0].Path < want[0].Path:
			diffs = append(diffs, Difference{Kind: Extra, Path: got[0].Path, Got: describe(&got[0])})
			got = got[1:]
		default:
			diffs = appendChanges(diffs, &want[0], &got[0], allWant.content(&want[0]), allGot.content(&got[0]))
			want, got = want[1:], got[1:]
		}
	}
	return diffs
}

// byPath is a sorted listing, in which the entry that a hard link names is found.
type byPath []Entry

// content gives the content of an entry or of the one it is a hard link to; that of a link that leads nowhere is empty.
func (b byPath) content(e *Entry) string {
	if e.Type != Regular {
		return ""
	}
	if e.HardLink != "" {
		i, ok := slices.BinarySearchFunc(b, Entry{Path: e.HardLink}, Compare)
		if !ok || b[i].Type != Regular || b[i].HardLink != "" {
			return ""
		}
		e = &b[i]
	}
	return hex.EncodeToString(e.Content[:])
}

func describe(e *Entry) string {
	switch e.Type {
	case Regular:
		return "file of " + strconv.FormatInt(e.Size, 10) + " bytes"
	case Symlink:
		return "symbolic link to " + Escape(e.Target)
	case CharDev, BlockDev:
		return typeName(e.Type) + " " + device(e)
	case Directory, FIFO, Socket:
	}
	return typeName(e.Type)
}

func typeName(t FileType) string {
	switch t {
	case Regular:
		return "file"
	case Directory:
		return "directory"
	case Symlink:
		return "symbolic link"
	case CharDev:
		return "character device"
	case BlockDev:
		return "block device"
	case FIFO:
		return "FIFO"
	case Socket:
		return "socket"
	}
	return "type " + strconv.Quote(string(t))
}

func device(e *Entry) string {
	if e.Type != CharDev && e.Type != BlockDev {
		return ""
	}
	return fmt.Sprintf("%d:%d", e.DevMajor, e.DevMinor)
}

func mtime(e *Entry) string {
	return string(appendNsec(append(strconv.AppendInt(nil, e.MtimeSec, 10), '.'), e.MtimeNsec))
}

// size of a symbolic link follows from its target and is not reported twice.
func size(e *Entry) string {
	if e.Type != Regular {
		return ""
	}
	return strconv.FormatInt(e.Size, 10)
}

func appendChanges(diffs []Difference, want, got *Entry, wantContent, gotContent string) []Difference {
	for _, a := range []struct{ name, want, got string }{
		{"type", typeName(want.Type), typeName(got.Type)},
		{"mode", octal(want.Mode), octal(got.Mode)},
		{"uid", decimal(want.UID), decimal(got.UID)},
		{"gid", decimal(want.GID), decimal(got.GID)},
		{"size", size(want), size(got)},
		{"mtime", mtime(want), mtime(got)},
		{"target", Escape(want.Target), Escape(got.Target)},
		{"device", device(want), device(got)},
		{"link", Escape(want.HardLink), Escape(got.HardLink)},
		{"content", wantContent, gotContent},
	} {
		if a.want != a.got {
			diffs = append(diffs, Difference{Kind: Changed, Path: want.Path, Attribute: a.name, Want: a.want, Got: a.got})
		}
	}
	names := slices.AppendSeq(slices.Collect(maps.Keys(want.Xattrs)), maps.Keys(got.Xattrs))
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		w, g := xattr(want, name), xattr(got, name)
		if w != g && Listed(name) {
			diffs = append(diffs, Difference{Kind: Changed, Path: want.Path, Attribute: "xattr:" + name, Want: w, Got: g})
		}
	}
	return diffs
}

func octal(n uint32) string { return fmt.Sprintf("%04o", n) }

func decimal(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// xattr is quoted, so that an empty value differs from a missing one.
func xattr(e *Entry, name string) string {
	value, ok := e.Xattrs[name]
	if !ok {
		return ""
	}
	return `"` + Escape(string(value)) + `"`
}

package tree

import (
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Bounds on following symbolic links: containerd gives up after 255 in one path, the kernel after 40. Steps bounds the
// work that one hostile layer can cause with links to links; no real layer comes near it.
const (
	maxLinks       = 255
	maxKernelLinks = 40
	maxSteps       = 200 << 20
)

// paths follows paths in a tree.
type paths struct {
	tree *Tree
	// hasLinks says that the tree may have symbolic links.
	hasLinks bool
	steps    int
}

// find looks a path up as containerd does, links inside the tree included; none if it is not there.
func (w *paths) find(name string) (Number, error) {
	resolved, err := w.resolve(name)
	if err != nil {
		return none, err
	}
	return w.lstat(resolved)
}

// resolve returns what containerd makes of a path that may lead through symbolic links of the layer (continuity's
// fs.RootPath): links are followed inside the root, an absolute target starts at the root, ".." never leaves it and is
// applied to the text of the path. Names that do not exist are kept. The result is clean and absolute.
func (w *paths) resolve(p string) (string, error) {
	if clean, ok, err := w.plain(p); ok || err != nil {
		return clean, err
	}
	links := 0
	for {
		before := links
		cur := "/"
		for c := range strings.SplitSeq(p, "/") {
			if c == "" {
				continue
			}
			next := path.Join(cur, c)
			target, err := w.readlink(next, &links)
			if err != nil {
				return "", err
			}
			switch {
			case target == "":
				cur = next
			case target[0] == '/':
				cur = path.Clean(target)
			default:
				cur = path.Join(cur, target)
			}
		}
		if links == before {
			return cur, nil
		}
		p = cur
	}
}

// plain resolves a path that meets no symbolic link, which is nearly every path; ok is false if it meets one.
func (w *paths) plain(p string) (clean string, ok bool, err error) {
	clean = path.Join("/", p)
	if strings.Contains(p, "..") {
		// Lexical cleaning is right only if no link comes before the dots; the slow way knows.
		if w.hasLinks {
			return "", false, nil
		}
	}
	at := Root
	for c := range strings.SplitSeq(clean[1:], "/") {
		if c == "" {
			continue
		}
		in := &w.tree.inodes[at]
		if !in.is(unix.S_IFDIR) {
			return "", false, invalid("%q: %w", clean, errNotDirectory)
		}
		at = w.tree.lookup(at, c)
		if at == none {
			return clean, true, nil
		}
		if w.tree.inodes[at].is(unix.S_IFLNK) {
			return "", false, nil
		}
	}
	return clean, true, nil
}

// readlink returns the target of the symbolic link p, "" if p is none or does not exist.
func (w *paths) readlink(p string, links *int) (string, error) {
	if *links > maxLinks {
		return "", invalid("%q: more than %d symbolic links", p, maxLinks)
	}
	n, err := w.lstat(p)
	if err != nil || n == none || !w.tree.inodes[n].is(unix.S_IFLNK) {
		return "", err
	}
	*links++
	return w.tree.targets[w.tree.inodes[n].data], nil
}

// lstat finds what the kernel would find at the clean absolute path p of the layer's directory: links in the middle are
// followed, a last one is not. A link in the middle that is absolute or climbs out of the directory would lead
// containerd to a file of the machine it runs on; it is taken as leading nowhere, as it does unless that machine
// happens to have such a file.
func (w *paths) lstat(p string) (Number, error) {
	stack := []Number{Root}
	todo := strings.Split(p, "/")
	for links := 0; len(todo) > 0; {
		if w.steps++; w.steps > maxSteps {
			return none, overLimit("steps through symbolic links", maxSteps)
		}
		c := todo[0]
		todo = todo[1:]
		at := stack[len(stack)-1]
		if !w.tree.inodes[at].is(unix.S_IFDIR) {
			return none, invalid("%q: %w", p, errNotDirectory)
		}
		switch c {
		case "", ".":
			continue
		case "..":
			if len(stack) == 1 {
				return none, nil
			}
			stack = stack[:len(stack)-1]
			continue
		}
		n := w.tree.lookup(at, c)
		if n == none {
			return none, nil
		}
		in := &w.tree.inodes[n]
		if !in.is(unix.S_IFLNK) || len(todo) == 0 {
			stack = append(stack, n)
			continue
		}
		if links++; links > maxKernelLinks {
			return none, invalid("%q: too many levels of symbolic links", p)
		}
		target := w.tree.targets[in.data]
		if target[0] == '/' {
			return none, nil
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	return stack[len(stack)-1], nil
}

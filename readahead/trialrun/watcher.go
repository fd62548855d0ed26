package trialrun

import (
	"bytes"
	"io"
	"regexp"
	"sync"
)

// maxLine is as much of a line as is looked at.
const maxLine = 64 << 10

// watcher looks at lines of output for one that matches.
type watcher struct {
	pattern *regexp.Regexp
	// ready is closed when a line has matched.
	ready chan struct{}
	once  sync.Once
}

func newWatcher(pattern *regexp.Regexp) *watcher {
	return &watcher{pattern: pattern, ready: make(chan struct{})}
}

// stream passes output on to out, which may be nil. Each stream has lines of its own.
func (w *watcher) stream(out io.Writer) io.Writer { return &stream{watcher: w, out: out} }

type stream struct {
	*watcher
	out  io.Writer
	line []byte
}

// Write is called by one goroutine at a time.
func (s *stream) Write(p []byte) (int, error) {
	s.look(p)
	if s.out == nil {
		return len(p), nil
	}
	return s.out.Write(p)
}

func (s *stream) look(p []byte) {
	if s.pattern == nil {
		return
	}
	for len(p) > 0 {
		piece, rest, whole := bytes.Cut(p, []byte("\n"))
		s.line = append(s.line, piece[:min(len(piece), maxLine-len(s.line))]...)
		// A prompt or a progress bar may wait long for the end of its line.
		if s.pattern.Match(bytes.TrimSuffix(s.line, []byte("\r"))) {
			s.once.Do(func() { close(s.ready) })
		}
		if whole {
			s.line = s.line[:0]
		}
		p = rest
	}
}

package builder

import (
	"errors"
	"hash"
	"io"
	"sync"
)

const (
	chunkBytes = 256 << 10
	// chunksAhead of the consumer may wait in memory: 2 MiB with chunkBytes.
	chunksAhead = 8
)

// pump reads a stream ahead of its consumer and hashes it, each in a goroutine of its own, so that decompressor, hash
// and unpacker work at the same time.
type pump struct {
	// chunks are for the consumer, free come back from it and from the hash.
	chunks chan *chunk
	free   chan *chunk
	// stop ends the reading early.
	stop     chan struct{}
	stopOnce sync.Once
	work     sync.WaitGroup

	current *chunk
	at      int
	err     error
}

// chunk goes to two readers and returns to free after both.
type chunk struct {
	buf  []byte
	n    int
	err  error
	both sync.WaitGroup
}

func startPump(src io.Reader, h hash.Hash) *pump {
	p := &pump{chunks: make(chan *chunk, chunksAhead), free: make(chan *chunk, chunksAhead), stop: make(chan struct{})}
	toHash := make(chan *chunk, chunksAhead)
	for range chunksAhead {
		p.free <- &chunk{}
	}
	p.work.Go(func() {
		defer close(toHash)
		defer close(p.chunks)
		p.read(src, toHash)
	})
	p.work.Go(func() {
		for c := range toHash {
			h.Write(c.buf[:c.n])
			c.both.Done()
		}
	})
	return p
}

func (p *pump) read(src io.Reader, toHash chan<- *chunk) {
	for {
		var c *chunk
		select {
		case c = <-p.free:
		case <-p.stop:
			return
		}
		c.both.Wait() // the hash may be behind the consumer
		if c.buf == nil {
			c.buf = make([]byte, chunkBytes)
		}
		c.n, c.err = io.ReadFull(src, c.buf)
		if errors.Is(c.err, io.ErrUnexpectedEOF) && c.n > 0 {
			c.err = nil // the next read shows whether it is the end or an error
		}
		c.both.Add(1)
		toHash <- c
		ended := c.err != nil
		select {
		case p.chunks <- c:
		case <-p.stop:
			return
		}
		if ended {
			return
		}
	}
}

// Read is for the one consumer.
func (p *pump) Read(b []byte) (int, error) {
	for {
		if p.err != nil {
			return 0, p.err
		}
		if p.current == nil {
			c, ok := <-p.chunks
			if !ok {
				p.err = io.ErrClosedPipe
				continue
			}
			p.current, p.at = c, 0
		}
		c := p.current
		if p.at < c.n {
			n := copy(b, c.buf[p.at:c.n])
			p.at += n
			return n, nil
		}
		p.current = nil
		if c.err != nil {
			p.err = c.err
			continue
		}
		p.free <- c
	}
}

// close stops the goroutines and waits for them; afterwards the hash is that of all that was read.
func (p *pump) close() {
	p.stopOnce.Do(func() { close(p.stop) })
	p.work.Wait()
}

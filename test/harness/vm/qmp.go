package vm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
)

// monitor speaks the QEMU Machine Protocol (docs/interop/qmp-spec.txt of QEMU). It is safe for concurrent use.
type monitor struct {
	conn net.Conn
	// turn is held while a command waits for its answer: they come in order.
	turn    chan struct{}
	answers chan message
	ended   chan struct{}

	// mu guards what follows.
	mu     sync.Mutex
	events []event
	// changed is closed and replaced with each event.
	changed chan struct{}
	err     error
}

type message struct {
	Return json.RawMessage
	Error  *struct{ Class, Desc string }
	Event  string
	Data   json.RawMessage
}

// event is one that QEMU has announced and nobody has taken yet.
type event struct {
	name string
	// device that it is about, if any.
	device string
}

func dialMonitor(ctx context.Context, socket string) (*monitor, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("dial QEMU: %w", err)
	}
	m := &monitor{conn: conn, turn: make(chan struct{}, 1), answers: make(chan message), ended: make(chan struct{}),
		changed: make(chan struct{})}
	go m.read()
	if err := m.execute(ctx, "qmp_capabilities", nil); err != nil {
		return nil, errors.Join(err, m.close())
	}
	return m, nil
}

func (m *monitor) close() error {
	err := m.conn.Close()
	<-m.ended
	return err
}

func (m *monitor) read() {
	defer close(m.ended)
	lines := json.NewDecoder(bufio.NewReader(m.conn))
	for {
		var msg message
		err := lines.Decode(&msg)
		switch {
		case err != nil:
			m.mu.Lock()
			m.err = err
			close(m.changed)
			m.mu.Unlock()
			close(m.answers)
			return
		case msg.Event != "":
			m.note(msg)
		case msg.Return != nil || msg.Error != nil: // the greeting has neither
			m.answers <- msg
		}
	}
}

func (m *monitor) note(msg message) {
	var data struct{ Device string }
	_ = json.Unmarshal(msg.Data, &data) // most events have no device
	m.mu.Lock()
	defer m.mu.Unlock()
	m.events = append(m.events, event{msg.Event, data.Device})
	close(m.changed)
	m.changed = make(chan struct{})
}

// execute a command. What QEMU complains about is the error.
func (m *monitor) execute(ctx context.Context, command string, arguments any) error {
	select {
	case m.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-m.turn }()
	request := map[string]any{"execute": command}
	if arguments != nil {
		request["arguments"] = arguments
	}
	b, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("encode QMP command %s: %w", command, err)
	}
	if _, err := m.conn.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("send QMP command %s: %w", command, err)
	}
	// The answer is waited for whatever ctx says, or the next command would get it. QEMU answers at once or is gone.
	msg, ok := <-m.answers
	if !ok {
		return fmt.Errorf("QMP command %s: QEMU has gone: %w", command, m.err)
	}
	if msg.Error != nil {
		return fmt.Errorf("QMP command %s: %s", command, msg.Error.Desc)
	}
	return nil
}

// await takes the next event of that name about the device; an empty device is any.
func (m *monitor) await(ctx context.Context, name, device string) error {
	for {
		m.mu.Lock()
		for i, e := range m.events {
			if e.name == name && (device == "" || e.device == device) {
				m.events = slices.Delete(m.events, i, i+1)
				m.mu.Unlock()
				return nil
			}
		}
		changed, err := m.changed, m.err
		m.mu.Unlock()
		if err != nil {
			return fmt.Errorf("wait for event %s of QEMU: %w", name, err)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for event %s %s of QEMU: %w", name, device, ctx.Err())
		}
	}
}

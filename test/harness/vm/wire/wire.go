// Package wire is how a test speaks to the agent in its virtual machine. The agent connects to the test and says Hello;
// the connection then waits for one Request, and is over after its Answer, or after what follows that when it was told
// to Dial. Each message is one line of JSON.
package wire

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
)

// HostParameter of the guest's kernel tells the agent HOST:PORT of the test.
const HostParameter = "berth.agent"

// Programs is the directory of the guest that has the agent and what is tested.
const Programs = "/opt/berth"

// Hello is the agent's first message.
type Hello struct {
	// BootID changes when the machine restarts (/proc/sys/kernel/random/boot_id).
	BootID string
}

// Request to the agent: to run a program, or to dial.
type Request struct {
	// Args starts with the program, which is looked for in PATH.
	Args []string
	// Stdin of the program.
	Stdin []byte
	// Log, if not empty, is a file that the program's output is appended to; the answer then comes when it has started.
	Log string
	// Dial is a unix socket to be joined with this connection, after the answer.
	Dial string
}

// Answer of the agent.
type Answer struct {
	Stdout, Stderr []byte
	// Status the program exited with, -1 after a signal.
	Status int
	// PID of a program that goes on.
	PID int
	// Error says why nothing was run or dialled; empty if something was.
	Error string
}

// Send a message.
func Send(w io.Writer, message any) error {
	b, err := json.Marshal(message)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	if _, err := w.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("send message: %w", err)
	}
	return nil
}

// Receive a message. What follows it stays in r.
func Receive(r *bufio.Reader, message any) error {
	line, err := r.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("receive message: %w", err)
	}
	if err := json.Unmarshal(line, message); err != nil {
		return fmt.Errorf("decode message: %w", err)
	}
	return nil
}

package main

import (
	"fmt"
	"io"
	"time"

	controlv1 "berth.dev/berth/proto/berth/control/v1"
	"berth.dev/berth/proto/enumword"
)

// lastChoice is the last choice of image snapshots for a pull, printed as text or as JSON.
type lastChoice struct {
	Time          time.Time         `json:"time"`
	ChainID       string            `json:"chain_id"`
	Reason        string            `json:"reason"`
	WaitedSeconds float64           `json:"waited_seconds"`
	Disks         []chosenDisk      `json:"disks"`
	Candidates    []choiceCandidate `json:"candidates"`
}

type chosenDisk struct {
	ImageSnapshot string `json:"image_snapshot"`
	Disk          string `json:"disk"`
	Result        string `json:"result"`
	Error         string `json:"error,omitempty"`
}

type choiceCandidate struct {
	Name    string `json:"name"`
	ID      string `json:"id"`
	Verdict string `json:"verdict"`
	Why     string `json:"why"`
}

func lastChoiceOf(m *controlv1.DiskChoice) *lastChoice {
	if m == nil {
		return nil
	}
	c := &lastChoice{Time: m.GetTime().AsTime(), ChainID: m.GetChainId(), Reason: m.GetReason(),
		WaitedSeconds: m.GetWaited().AsDuration().Seconds(), Disks: []chosenDisk{}, Candidates: []choiceCandidate{}}
	for _, d := range m.GetDisks() {
		c.Disks = append(c.Disks, chosenDisk{ImageSnapshot: d.GetImageSnapshot(), Disk: d.GetDisk(), Result: enumword.Of(d.GetResult()), Error: d.GetError()})
	}
	for _, x := range m.GetCandidates() {
		c.Candidates = append(c.Candidates, choiceCandidate{Name: x.GetName(), ID: x.GetId(), Verdict: enumword.Of(x.GetVerdict()), Why: x.GetWhy()})
	}
	return c
}

// print describes, in the order of events, what followed from the last pull that missed a layer.
func (c *lastChoice) print(w io.Writer) error {
	if c == nil {
		return nil
	}
	if _, err := fmt.Fprintf(w, "\nlast pull that no attached disk could serve, %s: %s\n", c.Time.Format(time.RFC3339), c.Reason); err != nil {
		return err
	}
	for _, d := range c.Disks {
		text := d.Result
		switch d.Result {
		case "ready":
			text = "attached in time"
		case "late":
			text = "not attached in time, the pull went on without it"
		}
		if d.Error != "" {
			text += ": " + d.Error
		}
		if _, err := fmt.Fprintf(w, "  disk %s of image snapshot %s: %s\n", d.Disk, d.ImageSnapshot, text); err != nil {
			return err
		}
	}
	if len(c.Disks) > 0 {
		if _, err := fmt.Fprintf(w, "  the pull waited %.1f s\n", c.WaitedSeconds); err != nil {
			return err
		}
	}
	for _, x := range c.Candidates {
		if _, err := fmt.Fprintf(w, "  %s (%s): %s\n", x.Name, x.Verdict, x.Why); err != nil {
			return err
		}
	}
	return nil
}

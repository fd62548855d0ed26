package main

import (
	"fmt"
	"io"
	"runtime"
	"time"
)

// report is what is printed and written.
type report struct {
	CPUs    int      `json:"cpus"`
	Started string   `json:"started"`
	Results []result `json:"results"`
}

// result is one number.
type result struct {
	// Part of the run, and what was measured in it.
	Part string `json:"part"`
	Name string `json:"name"`
	// Value in Unit.
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	// Expect is what should come out, in words; Met says whether it did. Both are empty for a number that stands for
	// itself.
	Expect string `json:"expect,omitempty"`
	Met    *bool  `json:"met,omitempty"`
}

func (r *report) add(part, name string, value float64, unit string) {
	if r.Started == "" {
		r.Started, r.CPUs = time.Now().UTC().Format(time.RFC3339), runtime.NumCPU()
	}
	r.Results = append(r.Results, result{Part: part, Name: name, Value: value, Unit: unit})
}

// atLeast, of a ratio, and atMost add a number with an expectation.
func (r *report) atLeast(part, name string, value, want float64) {
	r.add(part, name, value, "x")
	r.expect(fmt.Sprintf("at least %g", want), value >= want)
}

func (r *report) atMost(part, name string, value float64, unit string, want float64) {
	r.add(part, name, value, unit)
	r.expect(fmt.Sprintf("at most %g", want), value <= want)
}

func (r *report) expect(text string, met bool) {
	last := &r.Results[len(r.Results)-1]
	last.Expect, last.Met = text, &met
}

func (r *report) print(w io.Writer) {
	part := ""
	for _, res := range r.Results {
		if res.Part != part {
			part = res.Part
			fmt.Fprintf(w, "\n%s\n", part)
		}
		verdict := ""
		if res.Met != nil {
			verdict = "met: " + res.Expect
			if !*res.Met {
				verdict = "NOT met: " + res.Expect
			}
		}
		fmt.Fprintf(w, "  %-58s %12.3f %-7s %s\n", res.Name, res.Value, res.Unit, verdict)
	}
}

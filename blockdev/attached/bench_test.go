package attached

import (
	"os"
	"testing"

	"berth.dev/berth/blockdev/sysblock"
)

// BenchmarkScan is a look at all devices of this machine, of which nothing has changed.
func BenchmarkScan(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root")
	}
	s := newScanner(Options{})
	devices, err := sysblock.List(s.opts.Roots)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := s.scan(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(devices)), "devices")
}

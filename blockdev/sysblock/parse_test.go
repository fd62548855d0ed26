package sysblock

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseEvent(t *testing.T) {
	for name, tc := range map[string]struct {
		data string
		want Event
		ok   bool
	}{
		"disk": {"add@/devices/pci0/virtio1/block/vdb\x00ACTION=add\x00DEVPATH=/devices/pci0/virtio1/block/vdb\x00SUBSYSTEM=block\x00DEVNAME=vdb\x00",
			Event{"add", "vdb"}, true},
		"partition": {"remove@/d/block/vdb/vdb1\x00ACTION=remove\x00DEVPATH=/d/block/vdb/vdb1\x00SUBSYSTEM=block\x00DEVTYPE=partition\x00",
			Event{"remove", "vdb1"}, true},
		"slash in the name": {"add@/d/block/cciss!c0d0\x00ACTION=add\x00DEVPATH=/d/block/cciss!c0d0\x00SUBSYSTEM=block\x00DEVNAME=cciss/c0d0\x00",
			Event{"add", "cciss!c0d0"}, true},
		"other subsystem": {"add@/devices/usb\x00ACTION=add\x00DEVPATH=/devices/usb\x00SUBSYSTEM=usb\x00", Event{}, false},
		"udev's own":      {"libudev\x00\xfe\xed\xca\xfe", Event{}, false},
		"no name":         {"add@\x00ACTION=add\x00SUBSYSTEM=block\x00", Event{}, false},
		"empty":           {"", Event{}, false},
	} {
		got, ok := parseEvent([]byte(tc.data))
		require.Equal(t, tc.ok, ok, name)
		if ok {
			require.Equal(t, tc.want, got, name)
		}
	}
}

func TestPages(t *testing.T) {
	require.Equal(t, "abc", unitSerial([]byte("\x00\x80\x00\x06 abc  more")))
	require.Empty(t, unitSerial([]byte("\x00\x83\x00\x03abc")), "another page")
	require.Empty(t, unitSerial([]byte("\x00\x80")))
	require.Equal(t, "ab", unitSerial([]byte("\x00\x80\xff\xffab")), "longer than the page")
	require.Equal(t, []string{"one", "two"}, designators([]byte("\x00\x83\x00\x16\x02\x01\x00\x03one\x01\x03\x00\x01\xff\x03\x08\x00\x03two")))
	require.Empty(t, designators([]byte("\x00\x83\x00\x08\x02\x01\x00\x40one")), "a designator that ends behind the page")
	require.Empty(t, designators(nil))
	require.Len(t, designators([]byte("\x00\x83\xff\xff"+strings.Repeat("\x02\x01\x00\x01x", 200))), maxDesignators)
}

func FuzzParseEvent(f *testing.F) {
	f.Add([]byte("add@/d/block/vdb\x00ACTION=add\x00DEVPATH=/d/block/vdb\x00SUBSYSTEM=block\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if e, ok := parseEvent(data); ok {
			require.NotEmpty(t, e.Action)
			require.NotEmpty(t, e.Name)
			require.NotContains(t, e.Name, "/")
		}
	})
}

func FuzzPages(f *testing.F) {
	f.Add([]byte("\x00\x83\x00\x16\x02\x01\x00\x03one\x01\x03\x00\x01\xff\x03\x08\x00\x03two"))
	f.Fuzz(func(t *testing.T, data []byte) {
		require.LessOrEqual(t, len(unitSerial(data)), len(data))
		total := 0
		for _, d := range designators(data) {
			require.NotEmpty(t, d)
			total += len(d)
		}
		require.LessOrEqual(t, total, len(data))
	})
}

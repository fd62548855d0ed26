package imagesnapshot_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/imagesnapshottest"
)

func valid() *imagesnapshot.ImageSnapshot {
	s := &imagesnapshot.ImageSnapshot{
		Metadata: imagesnapshot.Metadata{Name: "nightly-1", ID: "x", Owner: "tenant", ClientToken: "t", Labels: map[string]string{"k": "v"}},
		Spec: imagesnapshot.Spec{
			Images: []string{"nginx:1.27", "registry.example:5000/team/app@sha256:" + strings.Repeat("a", 64)}, Platforms: []string{"linux/arm64"},
			Registries: []imagesnapshot.Registry{{Server: "registry.example:5000", Secret: "default:pull"}},
		},
	}
	s.Complete(imagesnapshottest.Limits())
	return s
}

// TestPhases has every pair of phases: what is not allowed here is refused with both names.
func TestPhases(t *testing.T) {
	allowed := map[imagesnapshot.Phase]string{
		"Pending":      "Creating Failed Unavailable Deleting",
		"Creating":     "Available Failed Unavailable Deleting",
		"Available":    "Updating UpdateFailed Unavailable Deleting",
		"Updating":     "Available UpdateFailed Unavailable Deleting",
		"UpdateFailed": "Updating Unavailable Deleting",
		"Failed":       "Deleting",
		"Unavailable":  "Deleting",
		"Deleting":     "",
	}
	require.Len(t, imagesnapshot.Phases(), len(allowed))
	for from, list := range allowed {
		require.True(t, from.Known())
		for _, to := range imagesnapshot.Phases() {
			s := valid()
			s.Status.Phase = from
			want := from == to || slices.Contains(strings.Fields(list), string(to))
			require.Equal(t, want, from.CanBecome(to), "%s to %s", from, to)
			err := s.SetPhase(to, imagesnapshot.ReasonReady, "m")
			if want {
				require.NoError(t, err)
				require.Equal(t, to, s.Status.Phase)
				continue
			}
			require.True(t, errdefs.IsFailedPrecondition(err))
			require.ErrorContains(t, err, string(from))
			require.ErrorContains(t, err, string(to))
			require.Equal(t, from, s.Status.Phase)
		}
		if from != "Deleting" {
			require.True(t, from.CanBecome("Deleting"), "C-25")
		}
		require.Equal(t, from == "Available" || from == "UpdateFailed", from.CanUpdate(), "E-28")
	}
	require.False(t, imagesnapshot.Phase("Ready").Known())
}

// TestUsable is E-26 and C-3.
func TestUsable(t *testing.T) {
	now := time.Now()
	for _, phase := range imagesnapshot.Phases() {
		s := valid()
		s.Status.Phase, s.Status.VolumeSnapshotID = phase, "s"
		require.Equal(t, phase == imagesnapshot.PhaseAvailable, s.Usable(now, false), phase)
		old := phase == imagesnapshot.PhaseUpdating || phase == imagesnapshot.PhaseUpdateFailed
		require.Equal(t, old || phase == imagesnapshot.PhaseAvailable, s.Usable(now, true), phase)
		s.Status.Expires = now
		require.False(t, s.Usable(now, true), "expired")
		s.Status.Expires, s.Status.VolumeSnapshotID = time.Time{}, ""
		require.False(t, s.Usable(now, true), "nothing to use")
	}
}

// TestEvents: E-27, C-45 and C-46: each has a reason for machines and a message for people, and the same again is
// counted.
func TestEvents(t *testing.T) {
	s := valid()
	at := func(i int) time.Time { return time.Unix(int64(i), 0) }
	s.AddEvent(at(1), imagesnapshot.EventWarning, imagesnapshot.ReasonRetrying, "busy")
	s.AddEvent(at(2), imagesnapshot.EventNormal, imagesnapshot.ReasonReady, "usable")
	s.AddEvent(at(3), imagesnapshot.EventWarning, imagesnapshot.ReasonRetrying, "busy")
	require.Equal(t, []imagesnapshot.Event{
		{Type: imagesnapshot.EventNormal, Reason: imagesnapshot.ReasonReady, Message: "usable", Count: 1, First: at(2), Last: at(2)},
		{Type: imagesnapshot.EventWarning, Reason: imagesnapshot.ReasonRetrying, Message: "busy", Count: 2, First: at(1), Last: at(3)},
	}, s.Status.Events)
	for i := range 1000 {
		s.AddEvent(at(10+i), imagesnapshot.EventNormal, imagesnapshot.ReasonChanged, fmt.Sprint(i))
	}
	require.Len(t, s.Status.Events, imagesnapshot.MaxEvents)
	require.Equal(t, "999", s.Status.Events[imagesnapshot.MaxEvents-1].Message)
	long := strings.Repeat("ü", 3000)
	s.AddEvent(at(5000), imagesnapshot.EventNormal, imagesnapshot.ReasonChanged, long)
	last := s.Status.Events[imagesnapshot.MaxEvents-1].Message
	require.LessOrEqual(t, len(last), imagesnapshot.MaxMessageBytes)
	require.True(t, strings.HasSuffix(last, "ü…"))
}

func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		"get https://user:pw@registry.example/v2/":        "get https://***@registry.example/v2/",
		`Get "https://s3.example/b?X-Sig=abc&y=1": EOF`:   `Get "https://s3.example/b?***": EOF`,
		"header Authorization: Bearer abc.def-123":        "header Authorization: Bearer ***",
		"Basic dXNlcjpwdw== refused":                      "Basic *** refused",
		"authorization failed: no basic auth credentials": "authorization failed: no basic auth credentials",
		"Basic authdXNlcjpwdw== refused":                  "Basic *** refused",
		"the word s3cret, twice s3cret":                   "the word ***, twice ***",
		"nothing at https://registry.example/v2/x":        "nothing at https://registry.example/v2/x",
	} {
		require.Equal(t, want, imagesnapshot.Redact(in, "s3cret", ""))
	}
}

func TestAutomaticName(t *testing.T) {
	name := imagesnapshot.AutomaticName("o", []string{"nginx", "redis:7"}, nil)
	require.NoError(t, imagesnapshot.CheckName(name))
	for _, same := range [][]string{{"redis:7", "nginx"}, {"docker.io/library/nginx:latest", "redis:7", "redis:7"}} {
		require.Equal(t, name, imagesnapshot.AutomaticName("o", same, nil))
	}
	seen := map[string]bool{name: true}
	for _, other := range []string{
		imagesnapshot.AutomaticName("", []string{"nginx", "redis:7"}, nil),
		imagesnapshot.AutomaticName("o", []string{"nginx", "redis:6"}, nil),
		imagesnapshot.AutomaticName("o", []string{"nginx"}, nil),
		imagesnapshot.AutomaticName("o", []string{"nginx", "redis:7"}, []string{"linux/arm64"}),
		imagesnapshot.AutomaticName("o", []string{"nginx@sha256:" + strings.Repeat("a", 64), "redis:7"}, nil),
	} {
		require.False(t, seen[other])
		seen[other] = true
	}
}

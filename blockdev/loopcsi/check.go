package loopcsi

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth.dev/berth/blockdev"
)

// toStatus gives an error of the loop driver its code.
func toStatus(err error) error { return errgrpc.ToGRPC(err) }

// require refuses a request that lacks a field; pairs are name and value.
func require(pairs ...string) error {
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] == "" {
			return status.Errorf(codes.InvalidArgument, "%s is required", pairs[i])
		}
	}
	return nil
}

// checkCapabilities accepts block volumes that one node uses.
func checkCapabilities(capabilities ...*csi.VolumeCapability) error {
	if len(capabilities) == 0 {
		return status.Error(codes.InvalidArgument, "volume capability is required")
	}
	for _, c := range capabilities {
		switch {
		case c == nil:
			return status.Error(codes.InvalidArgument, "volume capability is required")
		case c.GetBlock() == nil:
			return status.Error(codes.InvalidArgument, "only block volumes are served, not those with a file system")
		}
		//nolint:exhaustive // the others are refused
		switch mode := c.GetAccessMode().GetMode(); mode {
		case csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY,
			csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER, csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER:
		default:
			return status.Errorf(codes.InvalidArgument, "access mode %s: the volumes are of one node", mode)
		}
	}
	return nil
}

// volume finds a volume of the driver. Paths, which the driver would attach, are none.
func (s *storage) volume(ctx context.Context, id string) (blockdev.Volume, error) {
	v, err := s.driver.GetVolume(ctx, id)
	if err != nil {
		return v, toStatus(err)
	}
	return v, nil
}

// fits says whether this node is among those where a volume may be.
func (s *storage) fits(req *csi.TopologyRequirement) bool {
	wanted := req.GetRequisite()
	if len(wanted) == 0 {
		return true
	}
	for _, t := range wanted {
		node, ok := t.GetSegments()[TopologyKey]
		if !ok || node == s.options.NodeID {
			return true
		}
	}
	return false
}

// defaultBytes is the size of a volume whose size nobody says.
const defaultBytes = 1 << 30

// size chooses a new volume's size in the range; atLeast is that of its source.
func size(r *csi.CapacityRange, atLeast int64) (int64, error) {
	low, high := r.GetRequiredBytes(), r.GetLimitBytes()
	if low < 0 || high < 0 || high > 0 && high < max(low, atLeast) {
		return 0, status.Errorf(codes.OutOfRange, "no size fits: at least %d, at most %d bytes", max(low, atLeast), high)
	}
	if low > 0 && low < atLeast {
		return 0, status.Errorf(codes.OutOfRange, "the snapshot has %d bytes, %d are too few", atLeast, low)
	}
	wanted := cmp.Or(low, atLeast, high, defaultBytes)
	if high > 0 && (wanted+sizeStep-1)/sizeStep*sizeStep > high {
		return 0, status.Errorf(codes.OutOfRange, "sizes are multiples of %d bytes, none is from %d to %d", sizeStep, wanted, high)
	}
	return wanted, nil
}

// sizeStep is what the loop driver rounds up to.
const sizeStep = 4096

// page cuts out one page of a list sorted by name. A token is the name that the page begins with.
func page[T any](list []T, name func(T) string, token string, most int32) (part []T, next string, err error) {
	if most < 0 {
		return nil, "", status.Errorf(codes.InvalidArgument, "max_entries is %d", most)
	}
	if token != "" {
		at := -1
		for i, e := range list {
			if name(e) == token {
				at = i
				break
			}
		}
		if at < 0 {
			return nil, "", status.Errorf(codes.Aborted, "starting_token %q: begin from the start", token)
		}
		list = list[at:]
	}
	if most > 0 && len(list) > int(most) {
		return list[:most], name(list[most]), nil
	}
	return list, "", nil
}

// gone says whether an error means that there is no such thing, which is no error when it is to be deleted.
func gone(err error) bool { return errors.Is(err, blockdev.ErrNotFound) }

// maxNameBytes is the spec's limit of names.
const maxNameBytes = 128

// localName is the loop driver's name for what clients may call anything: the same where that can be the name of a
// directory, else a hash of it.
func localName(name string) (string, error) {
	if len(name) > maxNameBytes || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) {
		return "", status.Errorf(codes.InvalidArgument, "name %q: want 1 to %d bytes of UTF-8 without control characters", name, maxNameBytes)
	}
	plain := !strings.HasPrefix(name, ".")
	for _, c := range []byte(name) {
		plain = plain && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-')
	}
	if plain {
		return name, nil
	}
	sum := sha256.Sum256([]byte(name))
	return "sha256-" + hex.EncodeToString(sum[:]), nil
}

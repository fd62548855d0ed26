package matcher

import "fmt"

// Rules of one request. The zero Rules match nothing: neither automatic matching nor a pin is asked for.
type Rules struct {
	// Order of the keys by which automatic matching compares candidates.
	Order Order
	// AutoMatch asks for the best candidate.
	AutoMatch bool
	// Pin asks for one image snapshot.
	Pin Pin
	// RejectIfUnavailable turns a pin that cannot be used into a rejection; otherwise the images are pulled.
	RejectIfUnavailable bool
	// PinNeedsMatch keeps a pinned image snapshot unused when it holds none of the images.
	PinNeedsMatch bool
	// Conflict says what happens when Pin and AutoMatch are both asked for.
	Conflict ConflictPolicy
	// PerfectMatch lets automatic matching take only candidates that match all images exactly. It overrides MatchCount.
	PerfectMatch bool
	// MatchCount is the number of images that a candidate must match exactly to be taken by automatic matching, 0 for
	// any.
	MatchCount int
	// MaxAttach is how many disks the order OrderSaved may newly attach together, 0 for DefaultMaxAttach. All other
	// orders choose one disk.
	MaxAttach int
	// AttachCostBytes is what attaching one more disk costs, in bytes of download that take as long. OrderSaved
	// attaches a disk only if it saves more. With 0 attached disks only win ties.
	AttachCostBytes int64
}

// Order is the order of keys in which automatic matching compares candidates. The first key that differs decides; after
// the last one the name does, lowest first, so that all nodes choose alike.
type Order int

// The orders. Higher values of a key win.
const (
	// OrderSaved is the neutral one: download bytes that are saved less the cost of attaching, then bytes that need not
	// be unpacked, then disks that are attached already, images matched exactly, and the time of creation. It alone may
	// choose several disks together.
	OrderSaved Order = iota
	// OrderSize compares bytes of the matched images, then the time of creation (CCI's strategy "size").
	OrderSize
	// OrderQuantity compares the number of images matched exactly, then the time of creation (CCI's strategy
	// "quantity").
	OrderQuantity
	// OrderDegree compares the share of images matched exactly, then bytes of the matched images, then the time of
	// creation (ECI's order).
	OrderDegree
)

// String is the name that annotations and flags use.
func (o Order) String() string {
	switch o {
	case OrderSaved:
		return "saved"
	case OrderSize:
		return "size"
	case OrderQuantity:
		return "quantity"
	case OrderDegree:
		return "degree"
	}
	return fmt.Sprintf("Order(%d)", int(o))
}

// ParseOrder is the reverse of String.
func ParseOrder(s string) (Order, error) {
	for _, o := range []Order{OrderSaved, OrderSize, OrderQuantity, OrderDegree} {
		if o.String() == s {
			return o, nil
		}
	}
	return 0, fmt.Errorf("order %.80q is none of saved, size, quantity, degree", s)
}

// ConflictPolicy says what happens when both a pin and automatic matching are asked for.
type ConflictPolicy int

// The policies.
const (
	// ConflictPinWins takes the pinned one and warns if automatic matching would have taken another.
	ConflictPinWins ConflictPolicy = iota
	// ConflictPinWinsSilently takes the pinned one without a look at the others.
	ConflictPinWinsSilently
	// ConflictRejectIfDifferent rejects if automatic matching takes another image snapshot than the pinned one.
	ConflictRejectIfDifferent
	// ConflictRejectBoth rejects as soon as both are asked for.
	ConflictRejectBoth
)

// String names the policy in messages and in the annotation of the neutral dialect.
func (c ConflictPolicy) String() string {
	switch c {
	case ConflictPinWins:
		return "pin-wins"
	case ConflictPinWinsSilently:
		return "pin-wins-silently"
	case ConflictRejectIfDifferent:
		return "reject"
	case ConflictRejectBoth:
		return "reject-both"
	}
	return fmt.Sprintf("ConflictPolicy(%d)", int(c))
}

// ParseConflictPolicy is the reverse of String.
func ParseConflictPolicy(s string) (ConflictPolicy, error) {
	for c := ConflictPinWins; c <= ConflictRejectBoth; c++ {
		if c.String() == s {
			return c, nil
		}
	}
	return 0, fmt.Errorf("conflict policy %.80q is none of pin-wins, pin-wins-silently, reject, reject-both", s)
}

// Pin names one image snapshot. If both Name and ID are set they have to mean the same one. The zero Pin pins nothing.
type Pin struct {
	Name string
	ID   string
	// NameOrID lets Name be the ID if no image snapshot has that name.
	NameOrID bool
}

// IsZero reports whether nothing is pinned.
func (p Pin) IsZero() bool { return p.Name == "" && p.ID == "" }

// String names the pinned image snapshot for messages.
func (p Pin) String() string {
	switch {
	case p.Name != "" && p.ID != "":
		return fmt.Sprintf("%q with ID %q", p.Name, p.ID)
	case p.ID != "":
		return fmt.Sprintf("with ID %q", p.ID)
	default:
		return fmt.Sprintf("%q", p.Name)
	}
}

func (r *Rules) validate() error {
	if r.Order < OrderSaved || r.Order > OrderDegree {
		return fmt.Errorf("unknown order %d", int(r.Order))
	}
	if r.Conflict < ConflictPinWins || r.Conflict > ConflictRejectBoth {
		return fmt.Errorf("unknown conflict policy %d", int(r.Conflict))
	}
	if r.MatchCount < 0 {
		return fmt.Errorf("match count %d is negative", r.MatchCount)
	}
	if r.MaxAttach < 0 || r.MaxAttach > MaxDisks {
		return fmt.Errorf("%d disks to attach are not within 0..%d", r.MaxAttach, MaxDisks)
	}
	if r.AttachCostBytes < 0 || r.AttachCostBytes > maxLayerBytes {
		return fmt.Errorf("attach cost of %d bytes is not within 0..%d", r.AttachCostBytes, int64(maxLayerBytes))
	}
	return nil
}

// MarshalText makes an Order its name in JSON and TOML.
func (o Order) MarshalText() ([]byte, error) {
	if o < OrderSaved || o > OrderDegree {
		return nil, fmt.Errorf("unknown order %d", int(o))
	}
	return []byte(o.String()), nil
}

// UnmarshalText is the reverse of MarshalText.
func (o *Order) UnmarshalText(text []byte) error {
	parsed, err := ParseOrder(string(text))
	if err == nil {
		*o = parsed
	}
	return err
}

// MarshalText makes a ConflictPolicy its name in JSON and TOML.
func (c ConflictPolicy) MarshalText() ([]byte, error) {
	if c < ConflictPinWins || c > ConflictRejectBoth {
		return nil, fmt.Errorf("unknown conflict policy %d", int(c))
	}
	return []byte(c.String()), nil
}

// UnmarshalText is the reverse of MarshalText.
func (c *ConflictPolicy) UnmarshalText(text []byte) error {
	parsed, err := ParseConflictPolicy(string(text))
	if err == nil {
		*c = parsed
	}
	return err
}

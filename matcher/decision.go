package matcher

import "github.com/opencontainers/go-digest"

// Outcome of a match.
type Outcome int

// The outcomes.
const (
	// OutcomePull means that the images are pulled as if there were no image snapshots. Decision.Reason says why.
	OutcomePull Outcome = iota
	// OutcomeUse means that the chosen image snapshots are to be used; what they lack is pulled.
	OutcomeUse
	// OutcomeReject means that the rules refuse the pod, see Decision.Rejection.
	OutcomeReject
)

// String names the outcome for people and logs.
func (o Outcome) String() string {
	switch o {
	case OutcomeUse:
		return "use"
	case OutcomeReject:
		return "reject"
	default:
		return "pull"
	}
}

// Decision is the answer to a Request.
type Decision struct {
	Outcome Outcome
	// Reason says in a sentence why the outcome is what it is.
	Reason string
	// Chosen image snapshots, the best first; more than one only with OrderSaved. Empty unless Outcome is OutcomeUse.
	Chosen []Choice
	// Rejection is set if and only if Outcome is OutcomeReject.
	Rejection *Rejection
	// Warnings are for the user, for example that a pin overrode automatic matching.
	Warnings []string
	// NothingMatched reports that automatic matching was asked for and found no candidate that may be used. It is what
	// automatic creation waits for.
	NothingMatched bool
	// Saved by the chosen ones together.
	Saved Saving
	// Proven reports that no other set of disks within the rules saves more. It is false only with OrderSaved and a
	// great many different candidates, where the set was put together step by step.
	Proven bool
	// Considered is how many candidates share an image or a layer with the request, or are pinned.
	Considered int
	// Candidates are explained best first, first those that may be used. Request.Explain limits their number.
	Candidates []Explanation
}

// Choice is one chosen image snapshot.
type Choice struct {
	Name     string
	ID       string
	Attached bool
	Pinned   bool
}

// Saving is what disks save.
type Saving struct {
	// DownloadBytes need not be downloaded when the images are pulled one after another in the order of the request.
	DownloadBytes int64
	// UnpackBytes are the unpacked sizes of layers on the disks that are downloaded all the same: they are not
	// unpacked.
	UnpackBytes int64
}

// RejectCode tells programs why a request was rejected. All of them are of the class "bad request" (HTTP 400), also
// the missing image snapshot: at admission there is no resource in the request's path that could be missing.
type RejectCode string

// The codes.
const (
	RejectNotFound    RejectCode = "SnapshotNotFound"
	RejectUnavailable RejectCode = "SnapshotUnavailable"
	RejectConflict    RejectCode = "SnapshotConflict"
)

// Rejection says why the rules refuse a pod.
type Rejection struct {
	Code RejectCode
	// Message names the image snapshots and says what to do.
	Message string
}

// Error makes a Rejection an error; its class is "bad request".
func (r *Rejection) Error() string { return r.Message }

// Verdict on one candidate.
type Verdict string

// The verdicts.
const (
	VerdictChosen        Verdict = "chosen"
	VerdictLost          Verdict = "lost"           // another candidate is better
	VerdictNotNeeded     Verdict = "not-needed"     // the chosen ones have all that it has
	VerdictNotWorthwhile Verdict = "not-worthwhile" // attaching costs more than it saves
	VerdictGate          Verdict = "gate-not-met"   // perfect match or match count
	VerdictNotReady      Verdict = "not-ready"      // its state is not Available
	VerdictExpired       Verdict = "expired"        // its time is over
	VerdictPlatform      Verdict = "other-platform" // has no image for a platform that is wanted
	VerdictUnreachable   Verdict = "unreachable"    // cannot be attached to this node
	VerdictNoMatch       Verdict = "no-match"       // pinned, but shares nothing with the request
	VerdictSetAside      Verdict = "set-aside"      // it may be used, but the rules did not get to it
)

// Explanation is what the matcher thinks of one candidate.
type Explanation struct {
	Name     string
	ID       string
	Attached bool
	Pinned   bool
	Verdict  Verdict
	// Why is the verdict as a sentence, with the key by which it lost and both values.
	Why string
	// Score holds the keys of the order, the most important first. It is given for candidates that may not be used too.
	Score []Key
	// Saved by this candidate alone.
	Saved Saving
	// Images are as in the request.
	Images []ImageMatch
}

// KeyName names a key of an order.
type KeyName string

// The keys. Higher values win.
const (
	KeySaved    KeyName = "saved-bytes"    // download bytes saved, less the cost of attaching
	KeyUnpack   KeyName = "unpack-bytes"   // bytes that are downloaded but need no unpacking
	KeyAttached KeyName = "attached"       // 1 if attached already
	KeyImages   KeyName = "matched-images" // images matched exactly
	KeyBytes    KeyName = "matched-bytes"  // sizes of images matched exactly and of single layers of the others
	KeyCreated  KeyName = "created"        // microseconds since 1970
)

// Key is one key of a score with its value.
type Key struct {
	Name  KeyName
	Value int64
}

// MatchedBy says how an image matches.
type MatchedBy string

// The ways, the first two are exact.
const (
	MatchedByDigest MatchedBy = "digest"
	MatchedByName   MatchedBy = "name"
	MatchedByLayers MatchedBy = "layers"
	MatchedByNone   MatchedBy = ""
)

// Exact reports whether the whole image is there.
func (m MatchedBy) Exact() bool { return m == MatchedByDigest || m == MatchedByName }

// ImageMatch is what a candidate has of one requested image.
type ImageMatch struct {
	Reference string
	By        MatchedBy
	// MovedTag is the manifest digest that the candidate has under the same name when it is another than the wanted
	// one.
	MovedTag digest.Digest
	// Layers of the image, Hits of them on the disk, Run of them from the lowest up without a gap (layers on the node
	// included). All are 0 if the layers of the image are not known.
	Layers, Hits, Run int
}

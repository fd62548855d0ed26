package matcher

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// explain adds the explanations to a decision: of the limit best candidates and of all that were chosen or pinned.
func (m *match) explain(d *Decision, limit int) {
	d.Considered = len(m.g.touched)
	if limit == 0 {
		limit = DefaultExplain
	}
	e := explainer{g: m.g, o: m.o, decision: d, covered: slices.Clone(m.g.plan.present)}
	for _, c := range d.Chosen {
		at := int(m.g.at[m.g.index.byID[c.ID]]) - 1
		e.chosen = append(e.chosen, at)
		e.covered.or(m.g.has(&m.g.touched[at]))
	}
	shown := m.o.top(limit)
	for i := range m.g.touched {
		if (m.g.touched[i].pinned || slices.Contains(e.chosen, i)) && !slices.Contains(shown, i) {
			shown = append(shown, i)
		}
	}
	slices.SortFunc(shown, m.o.showOrder)
	d.Candidates = make([]Explanation, 0, len(shown))
	for _, i := range shown {
		d.Candidates = append(d.Candidates, e.candidate(i))
	}
}

// showOrder puts those that may be used first, then by rank.
func (o *ordering) showOrder(a, b int) int {
	ua, ub := o.g.touched[a].verdict == "", o.g.touched[b].verdict == ""
	switch {
	case ua == ub:
		return o.rank(a, b)
	case ua:
		return -1
	default:
		return 1
	}
}

// top returns the first n of all touched candidates in the order in which they are shown. There may be thousands of
// them, but only a handful is wanted, so it does not sort them.
func (o *ordering) top(n int) []int {
	var top []int
	for i := range o.g.touched {
		if n <= 0 || len(top) == n && o.showOrder(i, top[n-1]) > 0 {
			continue
		}
		at, _ := slices.BinarySearchFunc(top, i, o.showOrder)
		if len(top) == n {
			top = top[:n-1]
		}
		top = slices.Insert(top, at, i)
	}
	return top
}

// explainer says why the candidates of a decision were chosen or not.
type explainer struct {
	g        *gathered
	o        *ordering
	decision *Decision
	chosen   []int  // places among the touched
	covered  bitset // items that are on the node or on a chosen disk
}

func (e *explainer) candidate(i int) Explanation {
	t := &e.g.touched[i]
	r := &e.g.index.records[t.slot]
	x := Explanation{Name: r.name, ID: r.id, Attached: e.g.index.states[t.slot].attached, Pinned: t.pinned, Saved: e.g.groups[t.group].saved}
	x.Verdict, x.Why = e.verdict(i)
	for k, name := range e.o.keys {
		x.Score = append(x.Score, Key{Name: name, Value: t.score[k]})
	}
	x.Images = make([]ImageMatch, 0, len(e.g.plan.images))
	for img := range e.g.plan.images {
		x.Images = append(x.Images, e.image(img, t, r))
	}
	return x
}

func (e *explainer) verdict(i int) (Verdict, string) {
	t := &e.g.touched[i]
	switch {
	case slices.Contains(e.chosen, i):
		return VerdictChosen, e.chosenText(i)
	case t.verdict == VerdictGate && e.g.plan.rules.Pin.IsZero():
		return VerdictGate, e.gateText(t)
	case t.verdict == VerdictNoMatch || t.pinned && e.g.plan.rules.PinNeedsMatch && e.g.exact(t).empty() && e.g.unusableText(t) == "":
		return VerdictNoMatch, "it holds none of the images" + e.partsText(t)
	case e.g.unusableText(t) != "":
		return t.verdict, e.g.unusableText(t)
	case e.decision.Outcome == OutcomeReject:
		return VerdictSetAside, "the request is rejected"
	case !e.g.plan.rules.Pin.IsZero():
		return VerdictSetAside, fmt.Sprintf("image snapshot %s is asked for", e.g.plan.rules.Pin)
	case e.g.plan.rules.Order == OrderSaved:
		return e.savedVerdict(i)
	default:
		return VerdictLost, e.lostText(i, e.chosen[0])
	}
}

func (e *explainer) partsText(t *touched) string {
	if e.g.has(t).empty() {
		return " and none of their layers"
	}
	return ", only single layers of them"
}

func (e *explainer) chosenText(i int) string {
	t := &e.g.touched[i]
	switch {
	case t.pinned && !e.g.plan.rules.Pin.IsZero():
		return "it is asked for"
	case e.g.plan.rules.Order != OrderSaved:
		return "it is the best by " + keyList(e.o.keys)
	}
	text := "it saves " + savingText(e.g.groups[t.group].saved)
	if len(e.chosen) > 1 {
		text += fmt.Sprintf(", the %d chosen ones together %s", len(e.chosen), savingText(e.decision.Saved))
	}
	return text
}

// savedVerdict explains why a candidate that may be used is not in the set that OrderSaved chose.
func (e *explainer) savedVerdict(i int) (Verdict, string) {
	t := &e.g.touched[i]
	cost := e.g.plan.rules.AttachCostBytes
	if e.g.has(t).within(e.g.plan.present) {
		return VerdictNotNeeded, "all layers that it has are on the node already"
	}
	if e.g.has(t).within(e.covered) {
		for _, c := range e.chosen {
			if e.g.has(t).within(e.g.has(&e.g.touched[c])) && e.o.better(&e.g.touched[c], t) {
				return VerdictLost, e.lostText(i, c)
			}
		}
		return VerdictNotNeeded, "the chosen ones have all layers that it has"
	}
	with := slices.Clone(e.covered)
	with.or(e.g.has(t))
	saved := e.g.plan.saving(with, e.o.run)
	more := Saving{saved.DownloadBytes - e.decision.Saved.DownloadBytes, saved.UnpackBytes - e.decision.Saved.UnpackBytes}
	if more.DownloadBytes <= cost && cost > 0 {
		return VerdictNotWorthwhile, fmt.Sprintf("it would save %s more, attaching it costs as much as downloading %s",
			savingText(more), byteText(cost))
	}
	for _, c := range slices.Backward(e.chosen) {
		if e.o.better(&e.g.touched[c], t) {
			return VerdictLost, e.lostText(i, c)
		}
	}
	return VerdictLost, "the chosen ones save more together"
}

// lostText names the key by which a candidate lost to a better one.
func (e *explainer) lostText(loser, winner int) string {
	l, w := &e.g.touched[loser], &e.g.touched[winner]
	name := e.g.index.records[w.slot].name
	c, key := e.o.compare(w, l)
	if c <= 0 {
		return fmt.Sprintf("it equals image snapshot %q, whose name is first in the alphabet", name)
	}
	k := slices.Index(e.o.keys, key)
	return fmt.Sprintf("it lost to image snapshot %q by %s: %s against %s", name, key,
		keyText(key, l.score[k]), keyText(key, w.score[k]))
}

// image says what a candidate has of one image.
func (e *explainer) image(i int, t *touched, r *record) ImageMatch {
	img := &e.g.plan.images[i]
	x := ImageMatch{Reference: img.reference}
	if img.reference == "" {
		x.Reference = img.manifest.String()
	}
	for _, number := range r.images {
		c := e.g.index.content.images.at(number)
		switch by := img.exactBy(c); {
		case by == MatchedByDigest || by == MatchedByName && x.By == MatchedByNone:
			x.By = by
		case by == MatchedByNone && img.reference == c.Reference && img.platform.fits(c.Platform):
			x.MovedTag = c.ManifestDigest
		}
	}
	if x.By.Exact() {
		x.MovedTag = ""
	}
	if !img.known {
		return x
	}
	x.Layers = len(img.items)
	gap := false
	for _, item := range img.items {
		if e.g.has(t).has(item) {
			x.Hits++
		}
		gap = gap || !e.g.has(t).has(item) && !e.g.plan.present.has(item)
		if !gap {
			x.Run++
		}
	}
	if x.By == MatchedByNone && x.Hits > 0 {
		x.By = MatchedByLayers
	}
	return x
}

func keyList(keys []KeyName) string {
	names := make([]string, 0, maxKeys)
	for _, k := range keys {
		names = append(names, string(k))
	}
	return strings.Join(names, ", ")
}

func keyText(k KeyName, v int64) string {
	switch k {
	case KeySaved, KeyUnpack, KeyBytes:
		return byteText(v)
	case KeyCreated:
		return time.UnixMicro(v).UTC().Format("2006-01-02 15:04:05.999999")
	default:
		return fmt.Sprint(v)
	}
}

func savingText(s Saving) string {
	return fmt.Sprintf("%s of download and %s more of unpacking", byteText(s.DownloadBytes), byteText(s.UnpackBytes))
}

// byteText formats bytes in the unit that people compare them in.
func byteText(n int64) string {
	const units = "KMGTPE"
	if n > -1024 && n < 1024 {
		return fmt.Sprintf("%d bytes", n)
	}
	v, u := float64(n)/1024, 0
	for (v >= 1024 || v <= -1024) && u < len(units)-1 {
		v, u = v/1024, u+1
	}
	return fmt.Sprintf("%.1f %ciB", v, units[u])
}

func platformList(ps []Platform) string {
	names := make([]string, 0, len(ps))
	for _, p := range ps {
		names = append(names, p.String())
	}
	return strings.Join(names, ", ")
}

//! What the kind of time decides.

use datafusion::common::{Result, internal_err};
use differential_dataflow::lattice::Lattice;
use differential_dataflow::operators::iterate::Variable;
use timely::dataflow::operators::Leave;
use timely::order::Product;
use timely::progress::Timestamp;

use super::super::arranged::{self, Keyed};
use super::super::asof;
use super::super::codec::Row;
use super::super::fold::{self, Fold};
use super::super::plan::Node;
use super::{Renderer, Rows};

/// The times of collections: of the dataflow, and of iterations in it.
pub(in super::super) trait Time: Timestamp + Lattice + Ord {
    /// The epoch that it is in.
    fn epoch(&self) -> u64;

    /// Renders a [`Kind::Fixpoint`].
    fn fixpoint<'scope>(
        renderer: &mut Renderer<'_, 'scope, Self>,
        start: &Node,
        step: &Node,
    ) -> Result<Rows<'scope, Self>>;

    /// Joins rows with the last that are not later.
    fn as_of<'scope>(
        renderer: &Renderer<'_, 'scope, Self>,
        left: Keyed<'scope, Self>,
        right: Keyed<'scope, Self>,
        nothing: Row,
    ) -> Result<Rows<'scope, Self>>;

    /// The results of each key.
    fn fold<'scope>(
        renderer: &Renderer<'_, 'scope, Self>,
        input: Keyed<'scope, Self>,
        name: &str,
        fold: impl Fold,
    ) -> Rows<'scope, Self>;
}

impl Time for u64 {
    fn epoch(&self) -> u64 {
        *self
    }

    fn fixpoint<'scope>(
        renderer: &mut Renderer<'_, 'scope, Self>,
        start: &Node,
        step: &Node,
    ) -> Result<Rows<'scope, Self>> {
        let start = renderer.node(start)?;
        let outer = renderer.scope;
        let leaves = renderer.leaves.clone();
        let health = renderer.health;
        let mut refused = Vec::new();
        let found = outer.iterative::<Self, _, _>(|inner| {
            let (variable, found) = Variable::new(inner, Product::new(0, 1));
            let mut renderer = Renderer {
                scope: inner,
                leaves: leaves.into_iter().map(|leaf| leaf.enter(inner)).collect(),
                found: Some(found),
                rejects: Vec::new(),
                health,
            };
            let more = renderer.node(step)?;
            let all = renderer.distinct(start.enter(inner).concat(more));
            variable.set(all.clone());
            refused.extend(renderer.rejects.into_iter().map(|rejects| rejects.leave(outer)));
            Ok::<_, datafusion::common::DataFusionError>(all.leave(outer))
        })?;
        renderer.rejects.append(&mut refused);
        Ok(found)
    }

    fn fold<'scope>(
        renderer: &Renderer<'_, 'scope, Self>,
        input: Keyed<'scope, Self>,
        name: &str,
        fold: impl Fold,
    ) -> Rows<'scope, Self> {
        fold::fold(input, name, renderer.health, fold)
    }

    fn as_of<'scope>(
        renderer: &Renderer<'_, 'scope, Self>,
        left: Keyed<'scope, Self>,
        right: Keyed<'scope, Self>,
        nothing: Row,
    ) -> Result<Rows<'scope, Self>> {
        Ok(asof::join(left, right, nothing, renderer.health))
    }
}

impl Time for Product<u64, u64> {
    fn epoch(&self) -> u64 {
        self.outer
    }

    fn fixpoint<'scope>(
        _: &mut Renderer<'_, 'scope, Self>,
        _: &Node,
        _: &Node,
    ) -> Result<Rows<'scope, Self>> {
        internal_err!("a recursion within a recursion")
    }

    /// Times do not follow each other here: a round changes what it gave at an earlier epoch. So the rows are arranged,
    /// and each key's are looked at anew.
    fn fold<'scope>(
        renderer: &Renderer<'_, 'scope, Self>,
        input: Keyed<'scope, Self>,
        name: &str,
        fold: impl Fold,
    ) -> Rows<'scope, Self> {
        let health = renderer.health.clone();
        let input = renderer.arrange(input, name);
        let reduced = arranged::reduce(input, name, move |key, rows, out| {
            let results = health.check(fold.whole(key, rows));
            out.extend(results.into_iter().map(|row| (row, 1)));
        });
        arranged::charge(&reduced, name, renderer.health);
        reduced.as_collection(|_, row| row.clone())
    }

    fn as_of<'scope>(
        _: &Renderer<'_, 'scope, Self>,
        _: Keyed<'scope, Self>,
        _: Keyed<'scope, Self>,
        _: Row,
    ) -> Result<Rows<'scope, Self>> {
        internal_err!("an ASOF JOIN in a recursion")
    }
}

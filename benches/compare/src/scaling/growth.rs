//! The growth of a series, named.

use std::fmt;

/// How the figures grow with x.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Growth {
    /// `scale * x ^ exponent`: a straight line where both axes are logarithmic.
    Power {
        /// The figure at x = 1.
        scale: f64,
        /// The slope.
        exponent: f64,
    },
    /// `base + each * x`.
    Affine {
        /// The figure at x = 0.
        base: f64,
        /// What each adds.
        each: f64,
    },
}

/// Slope and intercept of the line with the least squares.
fn straight(points: &[(f64, f64)]) -> Option<(f64, f64)> {
    let n = points.len() as f64;
    let (x, y) = points.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0 / n, sum.1 + point.1 / n));
    let spread: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    let slope = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum::<f64>() / spread;
    (points.len() >= 2 && spread > 0.0).then_some((slope, y - slope * x))
}

impl Growth {
    /// The one that fits better, judged by relative error, or a power if that is asked for; `None` of fewer than two
    /// points.
    pub(super) fn of(points: &[(f64, f64)], power_only: bool) -> Option<Self> {
        let logs: Vec<(f64, f64)> =
            points.iter().filter(|(x, y)| *x > 0.0 && *y > 0.0).map(|(x, y)| (x.ln(), y.ln())).collect();
        let power = straight(&logs).map(|(exponent, at_one)| Self::Power { scale: at_one.exp(), exponent });
        let affine = straight(points).map(|(each, base)| Self::Affine { base, each });
        let error = |growth: &Self| {
            points.iter().map(|(x, y)| ((growth.at(*x) - y) / y.max(1e-9)).powi(2)).sum::<f64>()
        };
        let has_zero = points.iter().any(|(x, _)| *x <= 0.0);
        match (power, affine) {
            (Some(power), Some(affine))
                if !power_only && (has_zero || error(&affine) < error(&power) * 0.5) =>
            {
                Some(affine)
            }
            (Some(power), _) => Some(power),
            (None, affine) => affine,
        }
    }

    /// The figure at x.
    pub(super) fn at(&self, x: f64) -> f64 {
        match self {
            Self::Power { scale, exponent } => scale * x.powf(*exponent),
            Self::Affine { base, each } => base + each * x,
        }
    }
}

impl fmt::Display for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Power { exponent, .. } => {
                let name = match exponent {
                    e if e.abs() < 0.05 => "none",
                    e if *e < 0.0 => "falling",
                    e if *e < 0.9 => "less than linear",
                    e if *e <= 1.1 => "linear",
                    _ => "more than linear",
                };
                write!(f, "{name}, x^{exponent:.2}")
            }
            Self::Affine { base, each } => {
                write!(f, "linear from a base, {} + {} · x", significant(*base), significant(*each))
            }
        }
    }
}

/// Three significant digits.
fn significant(figure: f64) -> String {
    let digits = if figure == 0.0 { 0.0 } else { 2.0 - figure.abs().log10().floor() };
    format!("{figure:.0$}", digits.clamp(0.0, 9.0) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_and_bases_are_told_apart() {
        let square: Vec<(f64, f64)> = (1..8).map(|x| (f64::from(x), 3.0 * f64::from(x * x))).collect();
        let Some(Growth::Power { scale, exponent }) = Growth::of(&square, false) else { panic!("a power") };
        assert!((scale - 3.0).abs() < 1e-6 && (exponent - 2.0).abs() < 1e-6);
        let based: Vec<(f64, f64)> = (0..8).map(|x| (f64::from(x), 10.0 + 0.5 * f64::from(x))).collect();
        let Some(Growth::Affine { base, each }) = Growth::of(&based, false) else { panic!("a base") };
        assert!((base - 10.0).abs() < 1e-6 && (each - 0.5).abs() < 1e-6);
        let flat =
            Growth::of(&[(1.0, 2.0), (10.0, 2.0), (100.0, 2.0)], false).map(|growth| growth.to_string());
        assert_eq!(flat.as_deref(), Some("none, x^0.00"));
        assert_eq!(Growth::of(&[(1.0, 2.0)], false), None);
        assert_eq!(["0.00123", "12.3", "1234"], [0.001_234, 12.34, 1234.0].map(significant)[..]);
    }
}

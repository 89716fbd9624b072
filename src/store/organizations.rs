//! Organizations: the tenants, whose table is the application's.

use sqlx::postgres::PgConnection;

use super::{StoreError, in_time};
use crate::model::OrgId;
use crate::store::schema;

const EXISTS: &str = "SELECT EXISTS (SELECT FROM public.organizations WHERE id = $1)";

/// Whether there is such an organization.
///
/// # Errors
/// Whatever the database says.
pub async fn exists(db: &mut PgConnection, org: OrgId) -> Result<bool, StoreError> {
    in_time(schema::query_scalar(EXISTS).bind(org.0).fetch_one(db)).await
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * The PCI driver: a VFIO variant driver that leaves DMA to the kernel. All that is
 * about who owns what of the device stands here.
 *
 * DMA: the kernel, from probe to remove. Unlike every other VFIO driver this one does
 * not set driver_managed_dma, so the PCI core takes the group for its default domain
 * before probe (which fails when VFIO owns the group already) and gives it back after
 * remove. A user who opens the VFIO device and binds it to an iommufd gets an emulated
 * access, which claims no group; attaching it to an IOAS is of no consequence to the
 * device's DMA. The legacy group attach is refused by the IOMMU core.
 *
 * BARs and bus mastering: nobody, or sessions that asked with DMAPROBE_ENABLE, or users
 * of VFIO, who reset the function. That holds for all functions that VFIO resets
 * together, its device set, since it may reset those that it does not know to be in
 * use.
 */
#include <linux/capability.h>
#include <linux/delay.h>
#include <linux/module.h>
#include <linux/vfio_pci_core.h>

#include "compat.h"
#include "private.h"

struct dmaprobe_vfio_device {
	struct vfio_pci_core_device core;
	struct dmaprobe_device *dd;
};

static struct dmaprobe_device *to_dd(struct vfio_device *vdev)
{
	return container_of(vdev, struct dmaprobe_vfio_device, core.vdev)->dd;
}

static const struct vfio_device_ops dmaprobe_vfio_ops;

/* Whether sessions may have the registers, as far as VFIO is concerned. */
static bool vfio_has_none(struct vfio_device_set *set)
{
	struct vfio_device *vdev;

	lockdep_assert_held(&set->lock);
	list_for_each_entry(vdev, &set->device_list, dev_set_list)
		if (vdev->open_count || vdev->ops != &dmaprobe_vfio_ops)
			return false;
	return true;
}

/* Whether VFIO may have them. */
static bool sessions_have_none(struct vfio_device_set *set)
{
	struct vfio_device *vdev;

	lockdep_assert_held(&set->lock);
	list_for_each_entry(vdev, &set->device_list, dev_set_list)
		if (vdev->ops == &dmaprobe_vfio_ops && to_dd(vdev)->enable_users)
			return false;
	return true;
}

/* What a reset leaves behind all the same ends without bus mastering. */
#define REST_MS		200

/*
 * Make sure that no DMA that another user has set up is left in the device: it would go
 * on with bus mastering, and could meet this user's mappings.
 */
static int put_to_rest(struct dmaprobe_device *dd, kuid_t uid)
{
	int ret;

	if (!dd->used || uid_eq(dd->used_by, uid))
		return 0;
	ret = pci_try_reset_function(dd->pdev);
	if (ret == -EAGAIN)
		return -EBUSY;
	if (ret && !capable(CAP_SYS_RAWIO))
		return -EPERM;
	msleep(REST_MS);
	return 0;
}

static int enable(struct dmaprobe_session *s)
{
	struct dmaprobe_device *dd = s->dd;
	int ret;

	if (s->enabled)
		return 0;
	if (!vfio_has_none(dd->core->vdev.dev_set))
		return -EBUSY;
	if (!dd->enable_users) {
		ret = put_to_rest(dd, s->uid) ?: pci_enable_device(dd->pdev);
		if (ret)
			return ret;
		pci_set_master(dd->pdev);
	}
	/* Of several users, any can have left something. */
	dd->used_by = dd->enable_users && !uid_eq(dd->used_by, s->uid) ? INVALID_UID : s->uid;
	dd->used = true;
	dd->enable_users++;
	s->enabled = true;
	return 0;
}

static void disable(struct dmaprobe_session *s)
{
	struct dmaprobe_device *dd = s->dd;

	if (!s->enabled)
		return;
	s->enabled = false;
	if (--dd->enable_users)
		return;
	pci_clear_master(dd->pdev);
	pci_disable_device(dd->pdev);
}

int dmaprobe_op_enable(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_enable *cmd = ucmd->cmd;
	struct dmaprobe_session *s = ucmd->session;
	struct mutex *lock = &s->dd->core->vdev.dev_set->lock;
	int ret = 0;

	if (cmd->__reserved || cmd->enable > 1)
		return -EINVAL;
	/* VFIO holds it while it resets the function. */
	if (mutex_lock_killable(lock))
		return -EINTR;
	/* If it is not gone yet, unplug will find the session enabled. */
	if (s->dd->unplugged)
		ret = -ENODEV;
	else if (cmd->enable)
		ret = enable(s);
	else
		disable(s);
	mutex_unlock(lock);
	return ret;
}

/* End the use of registers and bus mastering by one session of a device or, NULL, all. */
void dmaprobe_disable(struct dmaprobe_device *dd, struct dmaprobe_session *only)
{
	struct dmaprobe_session *s;

	guard(mutex)(&dd->core->vdev.dev_set->lock);
	if (only)
		disable(only);
	else
		list_for_each_entry(s, &dd->sessions, node)
			disable(s);
}

/* VFIO holds the lock of the set. */
static int dmaprobe_vfio_open_device(struct vfio_device *vdev)
{
	struct vfio_pci_core_device *core = container_of(vdev, struct vfio_pci_core_device, vdev);
	int ret;

	if (!sessions_have_none(vdev->dev_set))
		return -EBUSY;
	to_dd(vdev)->used = true;
	to_dd(vdev)->used_by = INVALID_UID;
	ret = vfio_pci_core_enable(core);
	if (ret)
		return ret;
	vfio_pci_core_finish_enable(core);
	return 0;
}

static const struct vfio_device_ops dmaprobe_vfio_ops = {
	.name = "dmaprobe",
	.init = vfio_pci_core_init_dev,
	.release = vfio_pci_core_release_dev,
	.open_device = dmaprobe_vfio_open_device,
	.close_device = vfio_pci_core_close_device,
	.ioctl = vfio_pci_core_ioctl,
	DMAPROBE_VFIO_REGION_INFO_OPS
	.device_feature = vfio_pci_core_ioctl_feature,
	.read = vfio_pci_core_read,
	.write = vfio_pci_core_write,
	.mmap = vfio_pci_core_mmap,
	.request = vfio_pci_core_request,
	.match = vfio_pci_core_match,
	DMAPROBE_VFIO_MATCH_OPS
	.bind_iommufd = vfio_iommufd_emulated_bind,
	.unbind_iommufd = vfio_iommufd_emulated_unbind,
	.attach_ioas = vfio_iommufd_emulated_attach_ioas,
	.detach_ioas = vfio_iommufd_emulated_detach_ioas,
};

static int dmaprobe_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct dmaprobe_vfio_device *vdev;
	struct dmaprobe_device *dd;
	int ret;

	vdev = vfio_alloc_device(dmaprobe_vfio_device, core.vdev, &pdev->dev, &dmaprobe_vfio_ops);
	if (IS_ERR(vdev))
		return PTR_ERR(vdev);
	dd = dmaprobe_device_create(pdev, &vdev->core);
	if (IS_ERR(dd)) {
		vfio_put_device(&vdev->core.vdev);
		return PTR_ERR(dd);
	}

	vdev->dd = dd;
	dev_set_drvdata(&pdev->dev, &vdev->core);
	ret = vfio_pci_core_register_device(&vdev->core);
	if (ret) {
		pci_err(pdev, "cannot register with VFIO: %pe\n", ERR_PTR(ret));
		goto err_put;
	}
	ret = dmaprobe_device_add(dd);
	if (ret) {
		pci_err(pdev, "cannot add the character device: %pe\n", ERR_PTR(ret));
		goto err_unregister;
	}
	return 0;

err_unregister:
	vfio_pci_core_unregister_device(&vdev->core);
err_put:
	/* As long as VFIO's set has the one, it must find the other. */
	vfio_put_device(&vdev->core.vdev);
	dmaprobe_device_put(dd);
	return ret;
}

/*
 * Sessions end at once. Who has the VFIO device open is asked to close it, and waited for,
 * as with every VFIO driver; DMA faults meanwhile.
 */
static void dmaprobe_remove(struct pci_dev *pdev)
{
	struct vfio_pci_core_device *core = dev_get_drvdata(&pdev->dev);
	struct dmaprobe_device *dd = to_dd(&core->vdev);

	dmaprobe_device_unplug(dd);
	vfio_pci_core_unregister_device(core);
	vfio_put_device(&core->vdev);
	dmaprobe_device_put(dd);
}

/* Any device, but only one whose driver_override names this driver. */
static const struct pci_device_id dmaprobe_ids[] = {
	{ PCI_DRIVER_OVERRIDE_DEVICE_VFIO(PCI_ANY_ID, PCI_ANY_ID) },
	{}
};
MODULE_DEVICE_TABLE(pci, dmaprobe_ids);

static struct pci_driver dmaprobe_driver = {
	.name = "dmaprobe",
	.id_table = dmaprobe_ids,
	.probe = dmaprobe_probe,
	.remove = dmaprobe_remove,
	.err_handler = &vfio_pci_core_err_handlers,
};

int dmaprobe_vfio_register(void)
{
	return pci_register_driver(&dmaprobe_driver);
}

void dmaprobe_vfio_unregister(void)
{
	pci_unregister_driver(&dmaprobe_driver);
}
